"""One HTML page that needs no network: style, program and data are in it."""

import json
from html import escape
from string import Template

import vl_convert

from wshare.report.charts import CONFIG, Chart

# The policy makes sure of it: a browser that reads the page may load nothing. Vega compiles its expressions (eval).
POLICY = "default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval'; style-src 'unsafe-inline'; img-src data:"

PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="$policy">
<title>$title</title>
<style>$style</style>
</head>
<body>
<a class="skip" href="#main">Skip to the results</a>
<header><div class="wide"><p class="brand">wshare</p><h1>$heading</h1><p class="lead">$lead</p></div></header>
<main id="main" class="wide">
<noscript><p class="note">Charts and sorting need JavaScript; the same charts lie in the folder figures/.</p></noscript>
$body
</main>
<footer class="wide"><p>$footer</p></footer>
<script type="application/json" id="data">$data</script>
<script type="application/json" id="charts">$charts</script>
<script type="module">$vega
</script>
<script type="module">$script</script>
</body>
</html>
""")

STYLE = """
:root{--ink:#1b1b1b;--soft:#555;--line:#d9d9d9;--tint:#f5f7f9;--blue:#0072b2;--link:#005a8c;color-scheme:light}
*{box-sizing:border-box}
html{font:16px/1.55 system-ui,"Segoe UI",Roboto,"Helvetica Neue",Arial,"Liberation Sans",sans-serif;color:var(--ink);
background:#fff;-webkit-text-size-adjust:100%}
body{margin:0;overflow-wrap:anywhere}
.wide{max-width:72rem;margin:0 auto;padding:0 1.25rem}
header{background:#0b2f47;color:#fff;padding:1.6rem 0 1.4rem}
header h1{margin:.1rem 0 .3rem;font-size:1.9rem;line-height:1.2;overflow-wrap:anywhere}
header p{margin:0;max-width:none}
.brand{font-weight:700;letter-spacing:.04em;color:#9fd3f5}
.lead{color:#dcebf5}
.skip{position:absolute;left:-99rem}
.skip:focus{left:1rem;top:.5rem;background:#fff;padding:.3rem .6rem;z-index:9}
a{color:var(--link)}
h2{font-size:1.3rem;margin:2.4rem 0 .5rem;padding-top:.3rem;line-height:1.3}
h3{font-size:1.05rem;margin:1.2rem 0 .4rem}
p{margin:.5rem 0;max-width:48rem}
.note{background:var(--tint);border-left:4px solid var(--blue);padding:.6rem .9rem}
.cards{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,20rem),1fr));gap:1rem;margin:1.4rem 0}
.card{border:1px solid var(--line);border-radius:.6rem;padding:1rem 1.1rem;background:#fff}
.card[data-shown]{border-color:var(--blue);box-shadow:0 0 0 1px var(--blue)}
.card h3{margin:0;display:flex;justify-content:space-between;gap:.6rem;align-items:center;overflow-wrap:anywhere}
.big{font-size:1.35rem;font-weight:700;line-height:1.25;margin:.6rem 0 0}
.big small{font-size:.9rem;font-weight:400;color:var(--soft)}
.card dl{margin:.7rem 0 0;display:grid;grid-template-columns:1fr auto;gap:.15rem .8rem;font-size:.92rem}
.card dt{color:var(--soft)}
.card dd{margin:0;text-align:right;white-space:nowrap}
.verdict{font-size:.82rem;font-weight:700;border-radius:1rem;padding:.1rem .65rem;color:#fff;white-space:nowrap}
.met{background:#00694d}.missed{background:#a33f00}.undecided{background:#6a5300}
button,select{font:inherit;color:var(--ink);background:#fff;border:1px solid #767676;border-radius:.35rem;
padding:.3rem .8rem;cursor:pointer}
button:hover{background:var(--tint)}
.card button{margin-top:.8rem}
:focus-visible{outline:3px solid #d55e00;outline-offset:2px}
.picker{position:sticky;top:0;max-width:none;
background:#fff;border-bottom:1px solid var(--line);padding:.6rem 0;z-index:5}
.picker select{max-width:100%}
figure{margin:1rem 0}
figcaption{color:var(--soft);font-size:.95rem;max-width:48rem}
figure h3{margin:.2rem 0}
.chart{width:100%;min-height:3rem}
.row{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,19rem),1fr));gap:0 1.5rem}
.row>*{min-width:0}
/* A shadow at the edge behind which there is more; a white cover moves with the content and hides it at the end. */
.scroll{overflow-x:auto;max-width:100%;border:1px solid var(--line);border-radius:.4rem;margin:.8rem 0;
background:linear-gradient(90deg,#fff 50%,#fff0) 0/3rem 100% no-repeat local,
linear-gradient(270deg,#fff 50%,#fff0) 100%/3rem 100% no-repeat local,
linear-gradient(90deg,#0004,#0000) 0/.9rem 100% no-repeat,
linear-gradient(270deg,#0004,#0000) 100%/.9rem 100% no-repeat}
.tall{max-height:30rem;overflow-y:auto}
table{border-collapse:collapse;font-size:.9rem;width:100%}
th,td{overflow-wrap:normal;padding:.35rem .55rem;
text-align:left;border-bottom:1px solid #ececec;vertical-align:top;white-space:nowrap}
td.text{white-space:normal;min-width:12rem}
.free th,.free td{white-space:normal}
th{background:var(--tint);position:sticky;top:0}
tbody th{position:static;background:none;font-weight:600;white-space:normal}
.number{text-align:right;font-variant-numeric:tabular-nums}
th button{border:0;background:none;padding:0;font-weight:700}
th button::after{content:" \\2195";color:#767676}
th[aria-sort=ascending] button::after{content:" \\2191";color:var(--ink)}
th[aria-sort=descending] button::after{content:" \\2193";color:var(--ink)}
pre{background:var(--tint);border:1px solid var(--line);border-radius:.4rem;padding:.8rem;overflow-x:auto;
font-size:.85rem}
code{font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,"Liberation Mono",monospace}
p code,li code,td code{overflow-wrap:anywhere}
td.hash{white-space:normal;overflow-wrap:anywhere;min-width:12rem}
.images{display:grid;grid-template-columns:repeat(auto-fill,minmax(7.2rem,1fr));gap:1rem;list-style:none;padding:0}
.images img{width:100%;aspect-ratio:1;object-fit:contain;background:#eee;border-radius:.3rem;display:block}
.images li{font-size:.85rem;overflow-wrap:anywhere}
footer{border-top:1px solid var(--line);margin-top:3rem;padding-top:1rem;padding-bottom:2rem;color:var(--soft)}
#vg-tooltip-element{max-width:min(24rem,90vw);font-family:inherit;overflow-wrap:anywhere}
#vg-tooltip-element table{width:auto;font-size:.85rem}
#vg-tooltip-element td{white-space:normal;border:0;padding:.1rem .3rem}
[hidden]{display:none!important}
@media (max-width:40rem){html{font-size:15px}.wide{padding:0 .9rem}}
@page{margin:1cm}
@media print{
html{font-size:11px}
.wide{padding:0}
header{background:none;color:#000;padding:0;border-bottom:2px solid #000}
.brand,.lead{color:#000}
button,.picker,.skip{display:none!important}
th button{display:inline!important;border:0}
th button::after{content:none!important}
.tall{max-height:none;overflow:visible}
.scroll{overflow:visible;border:0;background:none}
table{font-size:.7rem}
th,td{white-space:normal;padding:.1rem .2rem}
td.number{white-space:nowrap}
td:not(.number){min-width:3.8rem;overflow-wrap:anywhere}
.verdict{color:#000;background:none;border:1px solid #000}
td .verdict{font-size:inherit;border:0;padding:0;white-space:normal}
footer{margin-top:1rem;padding-bottom:0}
figure,.card,tr,li{break-inside:avoid}
h2,h3{break-after:avoid}
.chart svg{max-width:100%;height:auto}
pre{white-space:pre-wrap}
}
"""

SCRIPT = """
const read = id => JSON.parse(document.getElementById(id).textContent);
const charts = read("charts"), data = read("data");
// Where the library reads its messages, errors of a chart show too.
const draw = async place => {
  if (place.dataset.drawn) return;
  place.dataset.drawn = "yes";
  await vegaEmbed(place, charts.specs[place.dataset.chart],
    {mode: "vega-lite", renderer: "svg", actions: false, config: charts.config});
};
const articles = [...document.querySelectorAll("article[data-search]")];
const picker = document.getElementById("search");
// A chart takes the width of its place, which a hidden one does not have.
const show = async name => {
  for (const article of articles) article.hidden = article.dataset.search !== name;
  for (const card of document.querySelectorAll(".card[data-search]"))
    card.toggleAttribute("data-shown", articles.length > 1 && card.dataset.search === name);
  if (picker) picker.value = name;
  const places = [...document.querySelectorAll(".chart")].filter(place => !place.closest("[hidden]"));
  await Promise.all(places.map(draw));
  document.documentElement.dataset.ready = name;
};
if (picker) picker.addEventListener("change", () => show(picker.value));
for (const button of document.querySelectorAll("button[data-show]"))
  button.addEventListener("click", async () => {
    await show(button.dataset.show);
    document.getElementById("details").scrollIntoView();
    if (picker) picker.focus({preventScroll: true});
  });

const value = cell => cell.dataset.value ?? cell.textContent.trim();
const compare = (a, b) => {
  const [x, y] = [Number(a), Number(b)];
  if (a !== "" && b !== "" && !Number.isNaN(x) && !Number.isNaN(y)) return x - y;
  return a.localeCompare(b, "en", {numeric: true});
};
for (const button of document.querySelectorAll("th button"))
  button.addEventListener("click", () => {
    const head = button.closest("th"), table = head.closest("table"), body = table.tBodies[0];
    const up = head.getAttribute("aria-sort") !== "ascending", sign = up ? 1 : -1, column = head.cellIndex;
    for (const other of table.tHead.rows[0].cells)
      if (other.hasAttribute("aria-sort")) other.setAttribute("aria-sort", "none");
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const key = row => value(row.cells[column]);
    body.append(...[...body.rows].sort((a, b) => sign * compare(key(a), key(b))));
  });

const save = (name, text, type) => {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], {type}));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
};
const quoted = text => /[",\\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
for (const button of document.querySelectorAll("button[data-csv]"))
  button.addEventListener("click", () => {
    const table = document.getElementById(button.dataset.csv);
    const lines = [...table.rows].map(row => [...row.cells].map(cell => quoted(value(cell))).join(","));
    save(button.dataset.name, lines.join("\\n") + "\\n", "text/csv");
  });
for (const button of document.querySelectorAll("button[data-text]"))
  button.addEventListener("click", () =>
    save(button.dataset.name, document.getElementById(button.dataset.text).textContent, "text/plain"));
await show(articles.length ? data.shown : "");
"""


def page(title: str, heading: str, lead: str, body: str, footer: str, data: dict, charts: dict[str, Chart]) -> str:
    """The whole page; `heading`, `lead`, `body` and `footer` are HTML, `data` is what its program and others read."""
    specs = {name: chart.spec for name, chart in charts.items()}
    return PAGE.substitute(
        policy=escape(POLICY),
        title=escape(title),
        heading=heading,
        lead=lead,
        body=body,
        footer=footer,
        style=STYLE,
        data=_script_json(data),
        charts=_script_json({"config": CONFIG, "specs": specs}),
        vega=vl_convert.javascript_bundle().replace("</script", "<\\/script"),
        script=SCRIPT,
    )


def _script_json(value: dict) -> str:
    """JSON that cannot end the script element it stands in."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c")


def figure(name: str, chart: Chart, heading: bool = False) -> str:
    """Place of a chart, with its finding as text alternative and as caption."""
    title = f"<h3>{escape(chart.title)}</h3>" if heading else ""
    alternative = escape(f"{chart.title}. {chart.finding}")
    return (
        f'<figure>{title}<div class="chart" data-chart="{escape(name)}" role="img" aria-label="{alternative}"></div>'
        f"<figcaption>{escape(chart.finding)}</figcaption></figure>"
    )


def table(
    identity: str,
    columns: list[tuple[str, str]],
    rows: list[list[tuple[str, object]]],
    caption: str,
    tall: bool = False,
) -> str:
    """A table sorted by buttons in its head, in a box of its own that scrolls.

    Columns are (title, CSS class); cells are (HTML, value to sort by and to download).
    """
    head = "".join(
        f'<th scope="col" class="{css}" aria-sort="none"><button type="button">{escape(title)}</button></th>'
        for title, css in columns
    )
    body = "".join(
        "<tr>"
        + "".join(
            f'<td class="{css}" data-value="{escape(str(value))}">{text}</td>'
            for (text, value), (_, css) in zip(row, columns, strict=True)
        )
        + "</tr>\n"
        for row in rows
    )
    return (
        f'<div class="scroll{" tall" if tall else ""}" role="region" aria-label="{escape(caption)}" tabindex="0">'
        f'<table id="{escape(identity)}"><thead><tr>{head}</tr></thead><tbody>\n{body}</tbody></table></div>'
    )


def listing(rows: list[tuple[str, str]], caption: str, css: str = "") -> str:
    """A table of names and values (HTML); `caption` tells it from others to those who do not see it."""
    body = "".join(
        f'<tr><th scope="row">{escape(name)}</th><td class="{css}">{text}</td></tr>\n' for name, text in rows
    )
    box = f'<div class="scroll" role="region" aria-label="{escape(caption)}" tabindex="0">'
    return f"{box}<table><tbody>\n{body}</tbody></table></div>"


def card(rows: list[tuple[str, str]], head: str, big: str, button: str, search: str) -> str:
    """A card with a headline, a figure, pairs of words and numbers, and a button."""
    pairs = "".join(f"<dt>{escape(name)}</dt><dd>{text}</dd>" for name, text in rows)
    return (
        f'<section class="card" data-search="{escape(search)}"><h3>{head}</h3><p class="big">{big}</p>'
        f"<dl>{pairs}</dl>{button}</section>"
    )
