"""The plots of RESULTS.md."""

import json
from statistics import median

import matplotlib

matplotlib.use("svg")
# The same figures make the same file.
matplotlib.rcParams.update({"svg.hashsalt": "homescar", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False})

import matplotlib.pyplot as plt  # noqa: E402

import report  # noqa: E402

COLOURS = {"homescar": "#1b7f5c", "haproxy": "#5b7db1", "nginx": "#9aa7b8", "envoy": "#c9a26b"}


def draw(folder, to):
    """Draws all, and says which pictures belong to which section."""
    to.mkdir(exist_ok=True)
    drawn = {}
    proxy = folder / "proxy.json"
    if proxy.exists():
        proxies = report.Proxies(json.loads(proxy.read_text()))
        cpu(proxies, to / "cpu.svg")
        memory(proxies, to / "memory.svg")
        latency(proxies, to / "latency.svg")
        drawn |= {"What it costs": ["cpu.svg", "memory.svg"], "Latency": ["latency.svg"]}
    if (folder / "lookup.txt").exists():
        lookup(report.lookups((folder / "lookup.txt").read_text()), to / "lookup.svg")
        drawn["Look-up and rebuild"] = ["lookup.svg"]
    if (folder / "spread.json").exists():
        disruption(json.loads((folder / "spread.json").read_text()), to / "spread.svg")
        drawn["Balance and disruption"] = ["spread.svg"]
    return drawn


def bars(rows, of_peer, title, path, line=None):
    peers = [peer for peer in COLOURS if any(of_peer(row, peer) for row in rows)]
    figure, axes = plt.subplots(figsize=(9, 0.34 * len(rows) * max(len(peers), 1) / 2 + 1.2))
    height = 0.8 / max(len(peers), 1)
    for index, peer in enumerate(peers):
        at = [position + index * height for position in range(len(rows))]
        of_rows = [of_peer(row, peer) or [0] for row in rows]
        middle = [median(figures) for figures in of_rows]
        low = [value - min(figures) for value, figures in zip(middle, of_rows)]
        high = [max(figures) - value for value, figures in zip(middle, of_rows)]
        axes.barh(at, middle, height, label=peer, color=COLOURS[peer], xerr=[low, high], error_kw={"lw": 0.7})
    if line is not None:
        axes.axvline(line, color="#444", lw=0.8)
    axes.set_yticks([position + 0.4 - height / 2 for position in range(len(rows))], rows)
    axes.invert_yaxis()
    axes.set_title(title, loc="left")
    axes.legend(frameon=False, fontsize=8)
    save(figure, path)


def cpu(proxies, path):
    rows = [row for row in proxies.of_kind("cpu") if proxies.costs(row, "haproxy")]
    bars(rows, lambda row, peer: proxies.ratios(row, peer, "haproxy"),
         "CPU a unit of work, haproxy = 1 (lower is better; lines: least to greatest round)", path, line=1)


def memory(proxies, path):
    bars(proxies.of_kind("memory"), proxies.costs, "KiB of the proxy's memory an idle connection (lower is better)", path)


def latency(proxies, path):
    rows = [row for row in ("tcp-rr-c1", "tcp-rr", "tcp-crr", "http-rr", "https-rr", "h2-rr") if row in proxies.rows]
    figure, panels = plt.subplots(1, max(len(rows), 1), figsize=(1.9 * max(len(rows), 1) + 1, 3), squeeze=False)
    for row, axes in zip(rows, panels[0]):
        for peer in [*COLOURS, "none"]:
            samples = proxies.of(row, peer)
            if samples and samples[0]["p50"] is not None:
                took = [median(s[key] for s in samples) for key in ("p50", "p99", "p999")]
                axes.plot(["p50", "p99", "p99.9"], took, marker="o", ms=3, color=COLOURS.get(peer, "#222"), label=peer)
        axes.set_yscale("log")
        axes.set_title(row, fontsize=9)
    panels[0][0].set_ylabel("µs")
    panels[0][0].legend(frameon=False, fontsize=7)
    save(figure, path)


def lookup(found, path):
    figure, axes = plt.subplots(figsize=(5, 3))
    for what, name in (("build", "rebuild"), ("home", "look-up"), ("second_choice", "second choice")):
        slots = sorted(n for kind, n in found if kind == what)
        axes.loglog(slots, [found[what, n] for n in slots], marker="o", ms=3, label=name)
    axes.set_xlabel("slots")
    axes.set_ylabel("µs")
    axes.legend(frameon=False)
    save(figure, path)


def disruption(data, path):
    slots = data["samples"][0]["slots"]
    samples = [sample for sample in data["samples"] if sample["slots"] == slots]
    figure, axes = plt.subplots(figsize=(8, 0.3 * len(samples) + 1.2))
    axes.barh([s["hash"] for s in samples], [100 * s["leaves"] for s in samples], color="#5b7db1")
    axes.axvline(100 * samples[0]["ideal"], color="#444", lw=0.8)
    axes.invert_yaxis()
    axes.set_title(f"% of clients that move when one of {slots} slots leaves (line: its fair share)", loc="left")
    save(figure, path)


def save(figure, path):
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
