#!/bin/sh
# Probe addresses of direct mode, seen from another machine: a network namespace behind a pair of
# interfaces, which lets its programs send from loopback addresses. Run it in namespaces of its own:
#     unshare --user --map-root-user --net tests/netns/outside.sh HOMESCAR WORKER
set -eu
homescar=$1 worker=$2
here=$(dirname "$0")

ip link set lo up
unshare --net sleep 120 &
outside=$!
trap 'kill $outside' EXIT
until [ "$(readlink /proc/$outside/ns/net)" != "$(readlink /proc/self/ns/net)" ]; do sleep 0.05; done
out() { nsenter --net --target "$outside" -- "$@"; }

ip link add inner type veth peer name outer netns "$outside"
ip address add 10.72.83.1/24 dev inner
ip link set inner up
out ip link set lo up
out ip address add 10.72.83.2/24 dev outer
out ip link set outer up
out sh -c 'echo 1 > /proc/sys/net/ipv4/conf/all/route_localnet
           echo 1 > /proc/sys/net/ipv4/conf/outer/route_localnet'

"$homescar" run --listen :7283 --workers 2 --contract fd --mode direct -- "$worker" >&2 &
served=$!
trap 'kill $served; wait $served; kill $outside' EXIT

echo "inside $(python3 "$here/ask.py" 127.72.83.1 127.0.0.1)"
echo "outside $(out python3 "$here/ask.py" 10.72.83.2 10.72.83.1)"
received() { ip -json -stats link show inner | python3 -c 'import json, sys
print(json.load(sys.stdin)[0]["stats64"]["rx"]["packets"])'; }
before=$(received)
echo "as-probe $(out python3 "$here/ask.py" 127.72.83.1 10.72.83.1)"
echo "knocks $(($(received) - before))"
echo "after $(out python3 "$here/ask.py" 10.72.83.2 10.72.83.1)"
