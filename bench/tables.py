"""Markdown and SVG of bench.csv. Standard library only."""

import csv
import html
import json
import math
import statistics

KEY = ("section", "name", "d_model", "d_sae", "batch", "k", "steps", "round")
COLUMNS = ("section", "round", "name", "d_model", "d_sae", "batch", "k", "steps", "warmup", "threads", "arch", "path",
           "tokens_per_s", "step_ms", "parts_ms", "fvu", "l0", "peak_rss_mb", "start_rss_mb", "peak_gflops",
           "rows", "bytes", "seconds", "error")
TOLERANCE = 0.01     # of FVU, at equal steps
LAST = 50            # steps over which FVU is averaged for that
COLOURS = {"ours": "#1b6ca8", "dl": "#c8963e", "saelens": "#8a8a8a"}


def read(path):
    """The rows of a csv, the last of each run where there are more; strings, but for the lists and the object."""
    if not path.exists():
        return []
    with open(path, newline="") as file:
        rows = {tuple(row[c] for c in KEY): row for row in csv.DictReader(file)}.values()
    for row in rows:
        for column in ("step_ms", "parts_ms", "fvu"):
            row[column] = json.loads(row[column] or "null")
    return list(rows)


class Group:
    """The rounds of one run at one shape."""

    def __init__(self, rows):
        self.name, self.rows = rows[0]["name"], rows
        self.shape = tuple(int(rows[0][c]) for c in ("d_model", "d_sae", "batch", "k"))

    def median(self, column):
        values = [float(row[column]) for row in self.rows if row[column]]
        return statistics.median(values) if values else math.nan

    def spread(self, column):
        values = [float(row[column]) for row in self.rows]
        return (max(values) - min(values)) / 2

    def step_ms(self):
        return statistics.median(statistics.median(row["step_ms"]) for row in self.rows)

    def floor_share(self):
        d_model, d_sae, batch, _ = self.shape
        floor_ms = 2 * batch * d_model * d_sae / (self.median("peak_gflops") * 1e6)
        return floor_ms, floor_ms / self.step_ms()


def groups(rows, section):
    """shape -> name -> Group, in the order of the csv."""
    found = {}
    for row in rows:
        if row["section"] == section and not row["error"]:
            shape = tuple(int(row[c]) for c in ("d_model", "d_sae", "batch", "k"))
            found.setdefault(shape, {}).setdefault(row["name"], []).append(row)
    return {shape: {name: Group(rows) for name, rows in by.items()} for shape, by in found.items()}


def table(header, lines, left=1):
    """Markdown with columns aligned: the first `left` to the left, numbers to the right."""
    cells = [header, *lines]
    widths = [max(len(line[i]) for line in cells) for i in range(len(header))]
    align = [str.ljust if i < left else str.rjust for i in range(len(header))]
    rule = ["-" * w if i < left else "-" * (w - 1) + ":" for i, w in enumerate(widths)]
    out = ["| " + " | ".join(a(c, w) for a, c, w in zip(align, line, widths)) + " |" for line in cells]
    return "\n".join([out[0], "| " + " | ".join(rule) + " |", *out[1:]])


def number(value, form=",.0f", missing="–"):
    return missing if value is None or math.isnan(value) else format(value, form)


def fvu_gap(group, reference):
    """The largest relative difference of FVU at one step; NaN without a reference."""
    if reference is None:
        return math.nan
    ours, theirs = group.rows[0]["fvu"], reference.rows[0]["fvu"]
    n = min(len(ours), len(theirs))
    return max(abs(a / b - 1) for a, b in zip(ours[-n:], theirs[-n:]))


def speed(rows):
    out = []
    for shape, by in groups(rows, "speed").items():
        lines = []
        for name, group in by.items():
            library, arch = name.split("/")[:2]
            ours, reference = by.get(f"ours/{arch}"), by.get(f"dl/{arch}/f32/tuned")
            if arch == "vanilla":   # theirs has a constant penalty, ours a steered one
                reference = None
            ratio = math.nan if ours is None or library == "ours" else \
                ours.median("tokens_per_s") / group.median("tokens_per_s")
            floor_ms, share = group.floor_share()
            lines.append([
                name, number(group.median("tokens_per_s")), "±" + number(group.spread("tokens_per_s")),
                number(ratio, ".2f"), number(group.step_ms(), ",.1f"), number(group.median("peak_rss_mb")),
                number(group.median("start_rss_mb")), number(statistics.median(r["fvu"][-1] for r in group.rows), ".5f"),
                number(math.nan if group is reference else fvu_gap(group, reference), ".1e"), number(group.median("l0"), ".2f"),
                number(group.median("peak_gflops")), number(floor_ms, ",.1f"), number(share, ".0%"), group.rows[0]["path"],
            ])
        header = ["run", "tokens/s", "spread", "ours is ×", "step ms", "peak MB", "start MB", "FVU, last step", "FVU gap",
                  "L0", "GFLOP/s", "floor ms", "of floor", "path"]
        out += [f"## d_model {shape[0]}, d_sae {shape[1]}, batch {shape[2]}, k {shape[3]}", table(header, lines)]
        for title, wanted in (("ours", True), ("PyTorch", False)):
            picked = [group for name, group in by.items() if name.startswith("ours/") == wanted]
            if any(group.rows[0]["parts_ms"] for group in picked):
                out += [f"The step by part, ms, {title}:", by_part(picked, lambda group: [group.name], ["run"])]
    return out


def by_part(picked, label, header):
    parts = list(dict.fromkeys(part for group in picked for part in group.rows[0]["parts_ms"] or {}))
    lines = []
    for group in picked:
        times = [[(row["parts_ms"] or {}).get(part) for row in group.rows] for part in parts]
        lines.append(label(group) + [number(group.step_ms(), ",.1f")]
                     + [number(None if None in t else statistics.median(t), ",.1f") for t in times])
    return table(header + ["step"] + parts, lines, left=len(header))


def quality(rows):
    """Lines, and whether every difference is within the tolerance."""
    out, within = [], True
    for shape, by in groups(rows, "quality").items():
        lines = []
        for name, group in by.items():
            reference = by.get("dl/" + name.split("/")[1] + "/f32/tuned")
            fvu = statistics.mean(group.rows[0]["fvu"][-LAST:])
            difference, verdict = math.nan, "–"
            if name.startswith("ours/") and reference is not None:
                difference = fvu / statistics.mean(reference.rows[0]["fvu"][-LAST:]) - 1
                verdict = "yes" if abs(difference) <= TOLERANCE else "NO"   # NaN is no
                within &= verdict == "yes"
            lines.append([name, group.rows[0]["steps"], number(fvu, ".5f"), number(difference, "+.2%"), verdict])
        out += [f"## Equal quality: d_model {shape[0]}, d_sae {shape[1]}, batch {shape[2]}, k {shape[3]}",
                table(["run", "steps", f"FVU, mean of the last {min(LAST, int(lines[0][1]))}", "ours to theirs",
                       f"within {TOLERANCE:.0%}"], lines)]
    return out, within


def scaling(rows):
    found = [group for by in groups(rows, "scaling").values() for group in by.values()]
    if not found:
        return []

    def label(group):
        return [group.name, str(group.shape[0]), str(group.shape[1]), str(group.shape[3]),
                number(1e3 * group.step_ms() / group.shape[2], ",.1f")]

    found.sort(key=lambda group: (group.name, group.shape))
    return ["## Our cost by size", f"Batch {found[0].shape[2]}; the step and its parts in ms.",
            by_part(found, label, ["run", "d_model", "d_sae", "k", "µs/token"])]


def parquet(rows):
    found = [group for by in groups(rows, "parquet").values() for group in by.values()]
    if not found:
        return []
    best = min(group.median("seconds") for group in found)
    lines = [[group.name, number(group.median("rows")), number(group.median("bytes") / 1e6), number(group.median("seconds"), ".3f"),
              number(group.median("bytes") / 1e6 / group.median("seconds")), number(group.median("seconds") / best, ".2f")]
             for group in found]
    return ["## Reading the harvest's Parquet", table(["run", "rows", "MB in memory", "seconds", "MB/s", "× the faster"], lines)]


def markdown(rows, machine):
    compared, within = quality(rows)
    out = ["# Benchmark", machine, *speed(rows), *compared, *scaling(rows), *parquet(rows)]
    return "\n\n".join(out) + "\n", within


def svg(rows):
    """Bars of tokens/s, a block of them per shape, the fastest of an architecture above."""
    bar, left, width, y, out = 16, 190, 760, 10, []
    for shape, by in groups(rows, "speed").items():
        out.append(f'<text x="10" y="{y + 14}" font-weight="bold">tokens/s, d_model {shape[0]}, d_sae {shape[1]}, '
                   f'batch {shape[2]}, k {shape[3]}</text>')
        y += 26
        longest = max(group.median("tokens_per_s") for group in by.values())
        last = None
        for group in sorted(by.values(), key=lambda g: (g.name.split("/")[1], -g.median("tokens_per_s"))):
            library, arch = group.name.split("/")[:2]
            y += 6 if last not in (None, arch) else 0
            last, value = arch, group.median("tokens_per_s")
            length = (width - left - 80) * value / longest
            out += [f'<text x="{left - 6}" y="{y + 12}" text-anchor="end">{html.escape(group.name)}</text>',
                    f'<rect x="{left}" y="{y}" width="{length:.1f}" height="{bar - 3}" fill="{COLOURS[library]}"/>',
                    f'<text x="{left + length + 5:.1f}" y="{y + 12}">{value:,.0f}</text>']
            y += bar
        y += 18
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{y}" font-family="sans-serif" font-size="12">'
    return "\n".join([head, f'<rect width="{width}" height="{y}" fill="#ffffff"/>', *out, "</svg>"]) + "\n"
