"""The style sheet of every page: light and dark by the reader's setting, light on paper."""

LIGHT = """
  --page: #ffffff; --ink: #1d2126; --dim: #5c6670; --rule: #dfe3e8; --card: #f5f7f9; --code: #f0f2f5; --link: #0069a8;
"""
DARK = """
  --page: #14171b; --ink: #e7eaee; --dim: #9aa5b1; --rule: #333a42; --card: #1d2228; --code: #22282f; --link: #5cb8f0;
"""


def colours(light: str, dark: str) -> str:
    """Custom properties that follow the reader's setting; on paper the light ones."""
    return f":root {{{light}}}\n@media screen and (prefers-color-scheme: dark) {{ :root {{{dark}}} }}"


STYLE = (
    ":root { color-scheme: light dark; }\n"
    + colours(LIGHT, DARK)
    + """
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
main, footer { max-width: 1080px; margin: 0 auto; padding: 0 20px; }
main { padding-top: 28px; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0 0 .5em; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; margin: 2.4em 0 .3em; padding-top: .8em; border-top: 1px solid var(--rule); }
h3 { font-size: 1rem; margin: 1.4em 0 .2em; }
p { margin: .4em 0 .8em; max-width: 46em; overflow-wrap: break-word; }
small { display: block; white-space: nowrap; font-size: .78rem; font-weight: normal; color: var(--dim); }
.dim, .note { color: var(--dim); }
.note { font-size: .85rem; }
code, pre { font: .85rem/1.45 ui-monospace, monospace; background: var(--code); border-radius: 4px; }
code { padding: .1em .3em; }
pre { padding: .7em .9em; overflow: auto; max-height: 26em; }
pre code { padding: 0; }
details { margin: 1em 0; }
summary { cursor: pointer; }
nav { display: flex; flex-wrap: wrap; gap: .2em 1.2em; font-size: .9rem; }
a { color: var(--link); }

.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(215px, 1fr)); gap: 12px; margin: 1.2em 0; }
.card { background: var(--card); border: 1px solid var(--rule); border-radius: 8px; padding: 12px 16px; }
.card h3 { margin: 0; font-size: .85rem; font-weight: 600; color: var(--dim); }
.card p { margin: 0; overflow-wrap: anywhere; }
.figure { font-size: 1.65rem; font-weight: 650; line-height: 1.35; font-variant-numeric: tabular-nums; }
.figure span { color: var(--dim); font-weight: 400; font-size: 1.15rem; }

.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; margin: .6em 0; }
th, td { padding: 4px 10px; text-align: left; vertical-align: middle; border-bottom: 1px solid var(--rule); }
thead th { font-size: .8rem; color: var(--dim); font-weight: 600; vertical-align: bottom; }
thead th { max-width: 14em; overflow-wrap: break-word; }
tbody th { font-weight: 600; overflow-wrap: anywhere; min-width: 11em; max-width: 20em; }
.number { text-align: right; font-variant-numeric: tabular-nums; }
td.number { white-space: nowrap; }

figure { margin: 0; min-width: 0; break-inside: avoid; }
figcaption { font-size: .88rem; font-weight: 600; overflow-wrap: anywhere; }
figcaption small { display: inline; }
/* Pictures are drawn on white. On a narrow screen they stay large enough to read, and scroll in their own frame. */
.picture { margin: .8em 0; }
.picture img { display: block; max-width: 100%; height: auto; background: #fff; border-radius: 6px; }

footer { margin-top: 3em; padding: 1em 20px 3em; font-size: .85rem; color: var(--dim); }
footer dl { display: flex; flex-wrap: wrap; gap: .2em 1.6em; margin: 0; padding-top: 1em;
  border-top: 1px solid var(--rule); }
footer div { display: flex; gap: .4em; }
footer dd { margin: 0; color: var(--ink); overflow-wrap: anywhere; }

@media (max-width: 640px) { th, td { padding: 4px 6px; } tbody th { min-width: 7em; } }
@media print {
  body { font-size: 11pt; }
  nav, summary { display: none; }
  main, footer { max-width: none; }
  .scroll { overflow: visible; }
  .cards { grid-template-columns: repeat(4, 1fr); }
  .figure { font-size: 14pt; }
  .picture img { min-width: 0 !important; width: auto; max-height: 21cm; }
  pre { white-space: pre-wrap; max-height: none; }
  table { font-size: 8.5pt; }
  th, td { padding: 3px 4px; }
  tbody th { min-width: 9em; }
  tr, .card, .picture, h2, h3, h2 + p { break-inside: avoid; }
  h2, h3, h2 + p { break-after: avoid; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
}
"""
)
