#!/usr/bin/env python3
"""What a storm of full TLS handshakes does to an established connection.

    cargo build --release
    bench/tls/storm.py rsa target/release/homescar [another binary …]
    bench/tls/storm.py p256 target/release/homescar [another binary …]

Starts each binary in mode tcp with TLS (a key of RSA with 2,048 bits or on P-256, one data-plane
thread) on CPU 0 before an echo on CPU 1, and measures the round trip of 64 bytes over one established connection for ROUNDS
rounds: calm, and while three `openssl s_time -new` make full handshakes from CPU 1 at the lowest
priority. The rounds of the binaries are interleaved; medians of their percentiles are printed.
"""

import os
import socket
import ssl
import statistics
import subprocess
import sys
import tempfile
import threading
import time

ROUNDS = 5
SECONDS = 3.0
KEYS = {"rsa": ["rsa:2048"], "p256": ["ec", "-pkeyopt", "ec_paramgen_curve:P-256"]}


def echo(server: socket.socket) -> None:
    def serve(peer: socket.socket) -> None:
        try:
            while data := peer.recv(65536):
                peer.sendall(data)
        except OSError:
            pass

    while True:
        peer, _ = server.accept()
        threading.Thread(target=serve, args=(peer,), daemon=True).start()


def round_trips(stream: ssl.SSLSocket, seconds: float) -> list[float]:
    message = bytes(64)
    trips = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        began = time.perf_counter()
        stream.sendall(message)
        got = 0
        while got < len(message):
            got += len(stream.recv(len(message) - got))
        trips.append((time.perf_counter() - began) * 1e3)
        time.sleep(0.0005)
    return sorted(trips)


def storm(port: int) -> list[subprocess.Popen]:
    command = ["openssl", "s_time", "-connect", f"127.0.0.1:{port}", "-new", "-time", "60"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return [subprocess.Popen(["nice", "-n", "19", *command], **quiet) for _ in range(3)]


def main(key: str, binaries: list[str]) -> None:
    os.sched_setaffinity(0, {1})
    server = socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=echo, args=(server,), daemon=True).start()
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", *KEYS[key], "-nodes", "-days", "2",
             "-subj", "/CN=localhost", "-keyout", f"{folder}/key.pem", "-out", f"{folder}/cert.pem"],
            check=True, stderr=subprocess.DEVNULL,
        )
        fronts = []
        for index, binary in enumerate(binaries):
            port = socket.create_server(("127.0.0.1", 0))
            number = port.getsockname()[1]
            port.close()
            config = f"{folder}/{index}.toml"
            with open(config, "w", encoding="utf-8") as file:
                file.write(
                    f'threads = 1\n[listener.web]\nbind = "127.0.0.1:{number}"\ncluster = "app"\n'
                    'tls = { cert = "cert.pem", key = "key.pem" }\n'
                    f'[cluster.app]\nbackends = ["127.0.0.1:{server.getsockname()[1]}"]\n'
                    '[log]\nlevel = "error"\n'
                )
            fronts.append((binary, number, subprocess.Popen(["taskset", "-c", "0", binary, "serve", "-c", config])))
        time.sleep(1)
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        seen: dict[tuple[str, str], list[tuple[float, float, float]]] = {}
        for _ in range(ROUNDS):
            for binary, port, _process in fronts:
                stream = context.wrap_socket(socket.create_connection(("127.0.0.1", port)))
                stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                for weather in ("calm", "storm"):
                    makers = storm(port) if weather == "storm" else []
                    time.sleep(0.3)
                    trips = round_trips(stream, SECONDS)
                    for maker in makers:
                        maker.kill()
                        maker.wait()
                    share = lambda part: trips[int((len(trips) - 1) * part)]
                    seen.setdefault((binary, weather), []).append((share(0.5), share(0.99), trips[-1]))
                stream.close()
        for _, _, process in fronts:
            process.terminate()
            process.wait()
    for (binary, weather), rounds in seen.items():
        p50, p99, worst = (statistics.median(column) for column in zip(*rounds))
        print(f"{binary} {weather}: p50 {p50:.2f} ms, p99 {p99:.2f} ms, worst {worst:.2f} ms")


main(sys.argv[1], sys.argv[2:])
