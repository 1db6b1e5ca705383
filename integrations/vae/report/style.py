"""The style sheet of the page: light and dark by the reader's setting, light on paper."""

LIGHT = """
  --page: #ffffff; --ink: #1d2126; --dim: #5c6670; --rule: #dfe3e8; --card: #f5f7f9; --code: #f0f2f5;
  --data: #c9ced5; --plain: #c75000; --surgery: #0069a8; --opposed: #e26a63; --agreeing: #45ad80;
"""
DARK = """
  --page: #14171b; --ink: #e7eaee; --dim: #9aa5b1; --rule: #333a42; --card: #1d2228; --code: #22282f;
  --data: #4c555f; --plain: #ff9248; --surgery: #5cb8f0; --opposed: #b0443d; --agreeing: #27724f;
"""

STYLE = (
    """
:root { color-scheme: light dark;"""
    + LIGHT
    + """}
@media screen and (prefers-color-scheme: dark) { :root {"""
    + DARK
    + """} }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
main, footer { max-width: 1080px; margin: 0 auto; padding: 0 20px; }
main { padding-top: 28px; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0 0 .5em; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; margin: 2.4em 0 .3em; padding-top: .8em; border-top: 1px solid var(--rule); }
h3 { font-size: 1rem; margin: 1.4em 0 .2em; }
p { margin: .4em 0 .8em; max-width: 46em; }
small { display: block; white-space: nowrap; font-size: .78rem; font-weight: normal; color: var(--dim); }
.dim, .note { color: var(--dim); }
.note { font-size: .85rem; }
code, pre { font: .85rem/1.45 ui-monospace, monospace; background: var(--code); border-radius: 4px; }
code { padding: .1em .3em; }
pre { padding: .7em .9em; overflow: auto; max-height: 26em; }
details { margin: 1em 0; }
summary { cursor: pointer; }
nav { display: flex; flex-wrap: wrap; gap: .2em 1.2em; font-size: .9rem; }
a { color: var(--surgery); }

.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(215px, 1fr)); gap: 12px; margin: 1.2em 0; }
.card { background: var(--card); border: 1px solid var(--rule); border-radius: 8px; padding: 12px 16px; }
.card h3 { margin: 0; font-size: .85rem; font-weight: 600; color: var(--dim); }
.card p { margin: 0; overflow-wrap: anywhere; }
.figure { font-size: 1.65rem; font-weight: 650; line-height: 1.35; font-variant-numeric: tabular-nums; }
.figure span { color: var(--dim); font-weight: 400; font-size: 1.15rem; }

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

.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; margin: .6em 0; }
th, td { padding: 4px 10px; text-align: left; vertical-align: middle; border-bottom: 1px solid var(--rule); }
thead th { font-size: .8rem; color: var(--dim); font-weight: 600; vertical-align: bottom; }
tbody th { font-weight: 600; overflow-wrap: anywhere; min-width: 11em; max-width: 20em; }
.number { text-align: right; }
.number { font-variant-numeric: tabular-nums; white-space: nowrap; }
.errors { width: 100%; }
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

figure { margin: 0; min-width: 0; break-inside: avoid; }
figcaption { font-size: .88rem; font-weight: 600; overflow-wrap: anywhere; }
figcaption small { display: inline; }
.small-multiples { display: grid; grid-template-columns: repeat(auto-fill, minmax(225px, 1fr)); gap: 20px 26px; }
.maps { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(290px, 100%), 1fr)); gap: 8px 20px; }
.maps svg, .maps figure { max-width: 480px; }
.maps figcaption, .lines figcaption { font-weight: normal; color: var(--dim); }
.maps figcaption { text-align: center; }
.lines { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(400px, 100%), 1fr)); gap: 20px 30px; }

footer { margin-top: 3em; padding: 1em 20px 3em; font-size: .85rem; color: var(--dim); }
footer dl { display: flex; flex-wrap: wrap; gap: .2em 1.6em; margin: 0; padding-top: 1em;
  border-top: 1px solid var(--rule); }
footer div { display: flex; gap: .4em; }
footer dd { margin: 0; color: var(--ink); overflow-wrap: anywhere; }

@media (max-width: 640px) { .errors .wide-cell { display: none; } th, td { padding: 4px 6px; }
  tbody th { min-width: 7em; } }
@media print {
  body { font-size: 11pt; }
  nav, summary { display: none; }
  main, footer { max-width: none; }
  .scroll { overflow: visible; }
  .cards { grid-template-columns: repeat(4, 1fr); }
  .figure { font-size: 14pt; }
  table { font-size: 8.5pt; }
  th, td { padding: 3px 4px; }
  tbody th { min-width: 9em; }
  .errors .wide-cell { display: table-cell; width: 16%; min-width: 60px; }
  .maps { grid-template-columns: repeat(3, 1fr); }
  tr, .card, .lines, h2, h3 { break-inside: avoid; }
  h2, h3 { break-after: avoid; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
}
"""
)
