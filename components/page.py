"""A checkpoint's chain as one self-contained HTML page: no network, no library, opens from a mail."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jinja2 import Environment

BINS = 20
WIDTH, HEIGHT = 320, 90  # of a chart, in pixels

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Audit of {{ found.checkpoint[:12] }}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
 body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem; color: #1d2733 }
 code, td.id { font-family: ui-monospace, monospace; font-size: 12px }
 h2 { margin-top: 2.5rem; border-top: 1px solid #d5dce4; padding-top: 1rem }
 table { border-collapse: collapse; width: 100% } th, td { text-align: left; padding: .2rem .6rem }
 th { border-bottom: 1px solid #8795a5 } td.n, th.n { text-align: right; font-variant-numeric: tabular-nums }
 tr:nth-child(even) td { background: #f5f7fa } dl { display: grid; grid-template-columns: 9rem 1fr; gap: .2rem 1rem }
 dt { color: #5b6b7c } dd { margin: 0; overflow-wrap: anywhere } figure { display: inline-block; margin: 0 2rem 0 0 }
 figcaption { color: #5b6b7c; font-size: 13px } input { font: inherit; padding: .3rem .6rem; width: 28rem; max-width: 100% }
</style></head><body>
<h1>What trained this checkpoint</h1>
<p><code>{{ found.checkpoint }}</code>, told by {{ found.told_by }}</p>
{% for one in found.sealed %}<p>{{ "Registered as" if one.registered else "Part of" }} {{ one.tag }}: MLflow run <code>{{ one.mlflow_run }}</code>, Prefect flow run <code>{{ one.prefect_flow_run }}</code></p>
{% endfor %}<svg role="img" aria-label="chain" width="{{ 190 * (found.iterations | length + 1) }}" height="70">
{%- for box in chain %}
 {%- if not loop.first %}<path d="M{{ 190 * loop.index0 - 30 }} 33 h26 m-7 -5 l7 5 l-7 5" fill="none" stroke="#5b6b7c"/>{% endif %}
 <rect x="{{ 190 * loop.index0 + 1 }}" y="8" width="156" height="50" rx="6" fill="#e8eef5" stroke="#8795a5"/>
 <text x="{{ 190 * loop.index0 + 79 }}" y="30" text-anchor="middle" font-size="14">{{ box.name }}</text>
 <text x="{{ 190 * loop.index0 + 79 }}" y="48" text-anchor="middle" font-size="11" fill="#5b6b7c">{{ box.digest[:16] }}</text>
{%- endfor %}
</svg>
{% for step in found.iterations %}
<h2>Iteration {{ step.iteration }}</h2>
<dl>
 <dt>checkpoint</dt><dd><code>{{ step.checkpoint }}</code></dd>
 <dt>subset</dt><dd>{{ step.records }} records <code>{{ step.subset }}</code></dd>
 <dt>sources</dt><dd>{% for name, count in step.sources.items() %}{{ name }} {{ count }}{{ ", " if not loop.last }}{% endfor %}</dd>
 <dt>pool</dt><dd><code>{{ step.pool }}</code></dd>
 <dt>code</dt><dd>{% if step.code %}<code>{{ step.code.commit }}</code>{{ "" if step.code.clean else ", with changes that no commit has" }}{% else %}not in git{% endif %}</dd>
 <dt>packages</dt><dd>{{ step.packages | join(", ") }}</dd>
 <dt>parameters</dt><dd><code>{{ step.params | tojson }}</code></dd>
 {% if step.metrics %}<dt>holdout</dt><dd>loss {{ step.metrics.loss }}, perplexity {{ step.metrics.perplexity }}, complexity {{ step.metrics.mean_complexity }}</dd>{% endif %}
</dl>
{% for name in ("complexity", "diversity") %}<figure>
<svg width="{{ width }}" height="{{ height }}" role="img" aria-label="{{ name }}">
{%- for bar in charts[step.iteration][name].bars %}<rect x="{{ bar.x }}" y="{{ bar.y }}" width="{{ bar.width }}" height="{{ bar.height }}" fill="#3b6ea5"/>{% endfor -%}
</svg><figcaption>{{ name }} of the picks, {{ charts[step.iteration][name].low }} to {{ charts[step.iteration][name].high }}</figcaption></figure>
{% endfor %}
{% endfor %}
<h2>Records</h2>
<p><input id="search" type="search" placeholder="id, source or iteration" aria-label="search"> <span id="count"></span></p>
<table id="records"><thead><tr><th>iteration</th><th class="n">rank</th><th>record</th><th>source</th><th class="n">complexity</th><th class="n">diversity</th><th class="n">score</th></tr></thead><tbody>
{%- for step in found.iterations %}{% for pick in step.picks %}
<tr><td>{{ step.iteration }}</td><td class="n">{{ pick.rank }}</td><td class="id">{{ pick.id }}</td><td>{{ pick.source }}</td>
{%- for name in ("complexity", "diversity", "score") %}<td class="n">{{ "-" if pick[name] is none else "%.4f" | format(pick[name]) }}</td>{% endfor %}</tr>
{%- endfor %}{% endfor %}
</tbody></table>
<script>
 const rows = [...document.querySelectorAll("#records tbody tr")], count = document.getElementById("count");
 function show(text) {
   let shown = 0;
   for (const row of rows) { const hit = row.textContent.toLowerCase().includes(text); row.hidden = !hit; shown += hit; }
   count.textContent = shown + " of " + rows.length + " records";
 }
 document.getElementById("search").addEventListener("input", event => show(event.target.value.trim().toLowerCase()));
 show("");
</script>
</body></html>
"""


def render(found: dict[str, Any]) -> str:
    """The page of what components.audit.describe has found, with every record."""
    chain = [{"name": "base model", "digest": found["base_model"]["digest"]}]
    chain += [{"name": f"iteration {step['iteration']}", "digest": step["checkpoint"]} for step in found["iterations"]]
    charts = {
        step["iteration"]: {
            name: _histogram([pick[name] for pick in step["picks"]]) for name in ("complexity", "diversity")
        }
        for step in found["iterations"]
    }
    template = Environment(autoescape=True).from_string(PAGE)
    return template.render(found=found, chain=chain, charts=charts, width=WIDTH, height=HEIGHT)


def _histogram(values: Sequence[float | None]) -> dict[str, Any]:
    """Bars of equal width between the lowest and the highest value."""
    known = [value for value in values if value is not None]
    if not known:
        return {"bars": [], "low": "-", "high": "-"}
    low, high = min(known), max(known)
    counts = [0] * BINS
    for value in known:
        counts[min(int((value - low) / (high - low) * BINS), BINS - 1) if high > low else 0] += 1
    wide, most = WIDTH / BINS, max(counts)
    bars = [
        {"x": number * wide, "y": HEIGHT * (1 - count / most), "width": wide - 2, "height": HEIGHT * count / most}
        for number, count in enumerate(counts)
        if count
    ]
    return {"bars": bars, "low": f"{low:.3g}", "high": f"{high:.3g}"}
