"""The style sheet of the drawings on the page, which comes after that of every page."""

from gradsurgery.diagnostics.page import colours

LIGHT = "--data: #c9ced5; --plain: #c75000; --surgery: #0069a8; --opposed: #e26a63; --agreeing: #45ad80;"
DARK = "--data: #4c555f; --plain: #ff9248; --surgery: #5cb8f0; --opposed: #b0443d; --agreeing: #27724f;"

STYLE = (
    colours(LIGHT, DARK)
    + """
.legend { display: flex; flex-wrap: wrap; gap: .2em 1.4em; font-size: .9rem; }
.swatch, .key { display: inline-block; width: .85em; height: .85em; border-radius: 2px; margin-right: .45em; }
.key { height: 0; width: 1.4em; border-top: 2.5px solid; border-radius: 0; vertical-align: .25em; margin-left: .6em; }
.swatch.data { background: var(--data); outline: 1px solid var(--dim); outline-offset: -1px; }
.swatch.plain { background: var(--plain); }
.swatch.surgery { background: var(--surgery); }
.swatch.guess { background: var(--ink); width: 3px; height: 1em; vertical-align: -.1em; }
.key.plain { border-color: var(--plain); border-top-style: dashed; }
.key.surgery { border-color: var(--surgery); }
.key.raw { border-color: var(--dim); border-top-style: dotted; }
figcaption span:not([class]) { white-space: nowrap; }
.ramp { display: inline-flex; align-items: center; gap: .5em; font-size: .85rem; }
.ramp i { width: 110px; height: .8em; border: 1px solid var(--rule); border-radius: 2px;
  background: linear-gradient(to right, var(--opposed), transparent, var(--agreeing)); }

.errors { width: 100%; }
.errors th.number { white-space: nowrap; max-width: none; }
.errors .wide-cell { width: 30%; min-width: 120px; }
.errors .mean > * { border-top: 2px solid var(--ink); }
.better { color: var(--surgery); }
.worse { color: var(--plain); font-weight: 650; }
.worse small, .better small { color: inherit; display: inline; margin-left: .4em; }
.schema td:last-child { overflow-wrap: anywhere; min-width: 14em; }

svg { display: block; width: 100%; height: auto; overflow: hidden; }
svg text { font: 11px system-ui, sans-serif; fill: var(--ink); }
svg .tick { fill: var(--dim); }
svg.named .tick { font-size: 13px; }
svg .cell { font-size: 12px; }
.bar.plain { fill: var(--plain); }
.bar.surgery { fill: var(--surgery); }
.guess { fill: var(--ink); }
.axis, .grid { fill: var(--rule); }
.shape.data { fill: var(--data); stroke: var(--dim); stroke-width: .6; }
.shape.plain, .shape.surgery, .line { fill: none; stroke-width: 1.8; stroke-linejoin: round; }
.shape.plain { stroke: var(--plain); stroke-dasharray: 4 2; }
.shape.surgery, .line.surgery { stroke: var(--surgery); }
.line { stroke-width: 2.2; }
.line.plain { stroke: var(--plain); stroke-dasharray: 6 3; }
.line.raw { stroke: var(--dim); stroke-dasharray: 2 3; }
.mark.plain, .dot.plain { fill: var(--plain); }
.mark.surgery, .dot.surgery { fill: var(--surgery); }
.opposed { fill: var(--opposed); }
.agreeing { fill: var(--agreeing); }
.frame { fill: none; stroke: var(--rule); }

.small-multiples { display: grid; grid-template-columns: repeat(auto-fill, minmax(225px, 1fr)); gap: 20px 26px; }
.maps { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(290px, 100%), 1fr)); gap: 8px 20px; }
.maps svg, .maps figure { max-width: 480px; }
.maps figcaption, .lines figcaption { font-weight: normal; color: var(--dim); }
.maps figcaption { text-align: center; }
.lines { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(400px, 100%), 1fr)); gap: 20px 30px; }

@media (max-width: 640px) { .errors .wide-cell { display: none; } }
@media print {
  .errors .wide-cell { display: table-cell; width: 16%; min-width: 60px; }
  .maps { grid-template-columns: repeat(3, 1fr); }
  .lines { break-inside: avoid; }
}
"""
)
