#!/usr/bin/env python3
"""Turns the figures of the benchmarks into tables, and with --full into RESULTS.md and plots.

    bench/report.py FOLDER                      tables of what is there, to standard output
    bench/report.py FOLDER --full --took 1100   bench/RESULTS.md and bench/plots/*.svg
"""

import argparse
import json
import pathlib
import re
import subprocess
import sys
from statistics import median

HERE = pathlib.Path(__file__).parent
US = "homescar"
# With which of these, homescar's ratio is to the best one.
RIVALS = ["haproxy", "nginx", "envoy"]

# The most that a row may be, of the best peer's in the same rounds …
BARS = {
    "tcp-rr": 0.90, "tcp-rr-c1": 0.90, "tcp-rr-16k": 0.85, "tcp-crr": 0.85, "tcp-up": 0.55, "tcp-down": 0.55,
    "http-rr": 0.70, "http-rr-16k": 0.70, "http-crr": 0.90, "https-rr": 0.80, "h2-rr": 0.90, "ws-rr": 0.90,
    "tls-full": 0.75, "tls-resumed": 0.75, "tls-rr": 0.85, "tls-down": 0.95,
}
# … or in KiB a connection.
MEMORY_BARS = {"idle-tcp": 1.0, "idle-tcp-used": 1.0, "idle-ws": 2.0, "idle-http": 1.0, "idle-tls": 12.0}
# … or, in direct mode, of what four workers with a port each cost the whole machine.
DIRECT_BAR = 1.03


def significant(figure):
    if figure is None:
        return "–"
    digits = 0 if abs(figure) >= 100 else 1 if abs(figure) >= 10 else 2
    return f"{figure:.{digits}f}"


def spread(figures, show=significant):
    figures = [figure for figure in figures if figure is not None]
    if not figures:
        return "–"
    if len(figures) == 1:
        return show(figures[0])
    return f"{show(median(figures))} ({show(min(figures))}–{show(max(figures))})"


def two(figure):
    return f"{figure:.2f}"


def verdict(value, bar):
    return "met" if value <= bar else f"missed by {value / bar - 1:.0%}"


def table(head, lines):
    out = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return out + ["| " + " | ".join(line) + " |" for line in lines] + [""]


class Proxies:
    """The figures of `cargo bench --bench proxy`."""

    def __init__(self, data):
        self.data = data
        self.peers = [peer["peer"] for peer in data["peers"]]
        self.rows = list(dict.fromkeys(sample["row"] for sample in data["samples"]))

    def of(self, row, peer):
        return [sample for sample in self.data["samples"] if sample["row"] == row and sample["peer"] == peer]

    def costs(self, row, peer):
        return [sample["cost"] for sample in self.of(row, peer)]

    def unit(self, row):
        return next(sample["unit"] for sample in self.data["samples"] if sample["row"] == row)

    def ratios(self, row, peer, to, key="cost"):
        """Within each round."""
        other = {sample["round"]: sample[key] for sample in self.of(row, to)}
        mine = [(sample["round"], sample[key]) for sample in self.of(row, peer)]
        return [figure / other[at] for at, figure in mine if figure is not None and other.get(at)]

    def best(self, row):
        """The peer that costs least, by its median."""
        costs = {peer: self.costs(row, peer) for peer in RIVALS}
        return min((peer for peer in costs if costs[peer]), key=lambda peer: median(costs[peer]), default=None)

    def is_kind(self, row, kind):
        """What is measured of a row: `cpu`, `memory`, `calls`, or what clients notice of an `event`."""
        kinds = {"memory": row.startswith("idle-"), "calls": row.startswith("calls-"), "event": ": " in row}
        return kinds[kind] if kind in kinds else not any(kinds.values())

    def of_kind(self, kind):
        return [row for row in self.rows if self.is_kind(row, kind)]

    def shown(self, with_none=False):
        return [peer for peer in self.peers if with_none or peer != "none"]


def summary(proxies):
    peers = proxies.shown()
    head = ["row", "unit", *peers]
    has_us = US in peers and any(peer in peers for peer in RIVALS)
    if has_us:
        head += ["÷ the best peer", "bar", ""]
    lines = []
    for row in proxies.rows:
        if proxies.is_kind(row, "event"):
            continue
        line = [f"`{row}`", proxies.unit(row), *(spread(proxies.costs(row, peer)) for peer in peers)]
        best = proxies.best(row)
        if has_us and best and proxies.costs(row, US):
            ratios = proxies.ratios(row, US, best)
            bar, value = BARS.get(row), median(ratios) if ratios else None
            shown = two(bar) if bar else ""
            if row in MEMORY_BARS:
                bar, value = MEMORY_BARS[row], median(proxies.costs(row, US))
                shown = f"{bar} KiB"
            met = "" if bar is None or value is None else verdict(value, bar)
            line += [f"{spread(ratios, two)} of {best}", shown, met]
        lines.append(line)
    return table(head, lines)


def machine(proxies):
    peers = proxies.shown(with_none=True)
    lines = [
        [f"`{row}`", proxies.unit(row), *(spread(s["machine"] for s in proxies.of(row, peer)) for peer in peers)]
        for row in proxies.of_kind("cpu")
    ]
    return table(["row", "unit", *peers], lines)


def throughput(proxies):
    peers = proxies.shown()
    if "none" not in proxies.peers:
        return []
    lines = []
    for row in proxies.of_kind("cpu"):
        line = [f"`{row}`", spread(s["rate"] for s in proxies.of(row, "none"))]
        line += [spread(proxies.ratios(row, peer, "none", "rate"), two) for peer in peers]
        lines.append(line)
    return table(["row", "without a proxy, a second", *(f"{peer} ÷ that" for peer in peers)], lines)


def latency(proxies):
    """Medians of the rounds' percentiles; what is added is to those without a proxy."""
    lines = []
    for row in proxies.of_kind("cpu"):
        plain = {key: [s[key] for s in proxies.of(row, "none")] for key in ("p50", "p99", "p999")}
        for peer in proxies.shown(with_none=True):
            samples = proxies.of(row, peer)
            if not samples or samples[0]["p50"] is None:
                continue
            line = [f"`{row}`", peer]
            for key in ("p50", "p99", "p999"):
                took = median(s[key] for s in samples)
                more = significant(took - median(plain[key])) if plain[key] and peer != "none" else None
                added = f" ({'' if more.startswith('-') else '+'}{more})" if more else ""
                line.append(significant(took) + added)
            lines.append(line)
    return table(["row", "peer", "p50, µs (added)", "p99", "p99.9"], lines)


def fullness(proxies):
    lines = []
    for row in proxies.of_kind("cpu"):
        for peer in proxies.shown(with_none=True):
            samples = proxies.of(row, peer)
            if not samples:
                continue
            shares = [median(s[key] for s in samples) for key in ("proxy_busy", "load_busy", "waiting")]
            full = [name for name, share in zip(("proxy", "load"), shares) if share >= 0.95]
            rate = spread(s["rate"] for s in samples)
            lines.append([f"`{row}`", peer, rate, *(f"{share:.0%}" for share in shares), " and ".join(full) or "neither"])
    return table(["row", "peer", "units a second", "proxy's CPU", "load's CPU", "kept waiting", "full"], lines)


def notes(proxies):
    lines = []
    for row in proxies.rows:
        for peer in proxies.shown():
            samples = proxies.of(row, peer)
            if samples and samples[-1]["note"] and proxies.is_kind(row, "calls"):
                lines.append([f"`{row}`", peer, samples[-1]["note"]])
    return table(["row", "peer", "which"], lines) if lines else []


def direct(data):
    out = []
    for row in dict.fromkeys(sample["row"] for sample in data["samples"]):
        samples = [sample for sample in data["samples"] if sample["row"] == row]
        plain = {s["round"]: s for s in samples if s["front"] == data["plain"]}
        lines = []
        for front in dict.fromkeys(sample["front"] for sample in samples):
            of_front = [sample for sample in samples if sample["front"] == front]
            line = [front, *(spread(s[key] for s in of_front) for key in ("between", "workers", "clients", "all"))]
            ratios = [s["all"] / plain[s["round"]]["all"] for s in of_front if s["round"] in plain]
            has_bar = front == data["barred"] and ratios
            bar = [two(DIRECT_BAR), verdict(median(ratios), DIRECT_BAR)] if has_bar else ["", ""]
            lines.append([*line, spread(ratios, two), *bar])
        head = [f"`{row}`, CPU in µs", "what is between", "workers", "clients", "all", "all ÷ four, each with a port",
                "bar", ""]
        out += table(head, lines)
    return out


def events(proxies):
    rows = proxies.of_kind("event")
    peers = [peer for peer in proxies.shown() if any(proxies.costs(row, peer) for row in rows)]
    lines = []
    for row in rows:
        event, what = row.split(": ")
        lines.append([f"`{event}`", what, proxies.unit(row), *(spread(proxies.costs(row, peer)) for peer in peers)])
    return table(["what happens", "what is noticed", "unit", *peers], lines)


def lookups(text):
    """The middle of criterion's `time: [low middle high]`, in µs."""
    units = {"ns": 1e-3, "µs": 1.0, "us": 1.0, "ms": 1e3}
    found = {}
    pattern = r"affinity/(\w+)/(\d+)\s+time:\s+\[\S+ \S+ (\S+) (\S+) "
    for what, slots, figure, unit in re.findall(pattern, text):
        found[what, int(slots)] = float(figure) * units[unit]
    return found


def lookup(text):
    found = lookups(text)
    slots = sorted({slots for _, slots in found})
    names = {"build": "rebuild", "home": "look-up", "second_choice": "second choice"}
    lines = [[f"{n:,}", *(significant(found.get((what, n))) for what in names)] for n in slots]
    return table(["slots", *(f"{name}, µs" for name in names.values())], lines)


def share(figure):
    return f"{figure:.2%}"


def spread_of_clients(data):
    lines = []
    for s in data["samples"]:
        lines.append([
            s["hash"], str(s["slots"]), share(s["fullest"]), share(s["emptiest"]),
            f"{share(s['leaves'])} ({share(s['ideal'])})", f"{share(s['joins'])} ({share(s['ideal_joins'])})",
        ])
    head = ["hash", "slots", "fullest ÷ mean", "emptiest ÷ mean", "moved when one leaves (its fair share)",
            "moved when one joins (its fair share)"]
    return table(head, lines)


SECTIONS = [
    ("proxy", json.loads, [
        ("What it costs", "CPU of the proxy, all its threads and processes, a unit of work; memory, the growth of its "
         "proportional share, a connection; system calls a unit. Medians of the rounds (least–greatest); ratios "
         "within each round. A bar is homescar's own goal, of memory in KiB, of CPU a ratio to the best peer: one that is "
         "missed does not mean that a peer costs less.",
         lambda data: summary(Proxies(data))),
        ("The whole machine", "All CPUs, whoever had them: proxy, clients, backends and kernel, a unit. `none`: clients "
         "straight to the backends.", lambda data: machine(Proxies(data))),
        ("Throughput", "With one CPU for the proxy and one for clients and backends together, who without a proxy "
         "have their CPU for themselves.", lambda data: throughput(Proxies(data))),
        ("Latency", "Of a unit, in µs, of clients that each begin the next when the last is done. `tcp-rr-c1` is the time "
         "that a relay adds; in all other rows clients mostly wait for the CPU that is full.",
         lambda data: latency(Proxies(data))),
        ("Who was full", "The shares of the time in which each side had its CPU, and in which something else kept "
         "it waiting.", lambda data: fullness(Proxies(data))),
        ("Which system calls", "", lambda data: notes(Proxies(data))),
        ("Under load", "`reload`: the same configuration is read again. `remove`: one without the last of four backends; "
         "whose home that was, a quarter, must move. `restart`: a worker is killed; homescar starts it again, the "
         "others' after 100 ms, as systemd would.", lambda data: events(Proxies(data))),
    ]),
    ("direct", json.loads, [("Direct mode", "Four `node server.js`. The plain one is four of them with a port each, of "
                             "which every client knows its own. `direct-crr`: connect, a GET, a reset; "
                             "`direct-http-rr`: GETs on connections that stay.", direct)]),
    ("lookup", str, [("Look-up and rebuild", "Of homescar's table.", lookup)]),
    ("spread", json.loads, [("Balance and disruption", "A million simulated clients.", spread_of_clients)]),
]


def sections(folder):
    for name, parse, parts in SECTIONS:
        files = [folder / f"{name}.json", folder / f"{name}.txt"]
        file = next((file for file in files if file.exists()), None)
        if file is None:
            continue
        data = parse(file.read_text())
        for title, text, make in parts:
            lines = make(data)
            if len(lines) > 3:
                yield name, title, text, lines


def commit():
    words = ["git", "-C", str(HERE), "describe", "--always", "--dirty"]
    said = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False)
    return said.stdout.decode().strip() or "unknown"


def facts(folder):
    out = []
    if (folder / "proxy.json").exists():
        data = json.loads((folder / "proxy.json").read_text())
        out = [data["facts"], ""]
        out += [f"- {peer['peer']}: {peer['version']}" for peer in data["peers"]]
        out += [f"- commit: {commit()}"]
        out += ["", f"{data['rounds']} rounds of {data['seconds']:g} s, peers taking turns."]
    return out


def full(folder, took):
    import plots

    # Before the plots are drawn, which are files of the commit.
    about = facts(folder)
    drawn = plots.draw(folder, HERE / "plots")
    out = ["# Results", "", "Written by `bench/run`; [README.md](README.md) has the method, and [peers](peers/README.md) "
           "the configurations.", "", *about, f"The run took {took // 60} min.", ""]
    for _, title, text, lines in sections(folder):
        out += [f"## {title}", ""]
        out += [line for picture in drawn.get(title, []) for line in (f"![{title}](plots/{picture})", "")]
        out += [text, ""] if text else []
        out += lines
    (HERE / "RESULTS.md").write_text("\n".join(out).rstrip() + "\n")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--took", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.full:
        full(arguments.folder, arguments.took)
        return
    print("\n".join(facts(arguments.folder)))
    for _, title, _, lines in sections(arguments.folder):
        print(f"\n{title}\n\n" + "\n".join(lines).rstrip())


if __name__ == "__main__":
    sys.path.insert(0, str(HERE))
    sys.dont_write_bytecode = True
    main()
