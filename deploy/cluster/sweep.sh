#!/usr/bin/env bash
# A Ray cluster of a head and WORKERS workers, each with CPUS CPUs, by plain `ray start`; `everline sweep` on it; its end.
#
#     deploy/cluster/sweep.sh WORKERS CPUS --method coreset,padim --data DIR... --out DIR
#
# All of them are on this machine, to try it. On several, the lines below marked with a star go each to its own machine;
# what they must share is in docs/clusters.md. `ray` and `everline` must be found: activate the environment first.
set -euo pipefail

workers=$1 cpus=$2
shift 2
folder=$(mktemp -d /tmp/evXXXXXX) # short, since sockets lie in it
port=$(python -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')

# Who has the token may run anything on the cluster: one file, for its owner alone, copied to every machine.
(umask 077 && python -c 'import secrets; print(secrets.token_hex(32))' > "$folder/token")
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$folder/token

started=()
stop() { # only what was started here: `ray stop` would end every Ray on this machine
  kill "${started[@]}" 2> /dev/null || true
  wait || true
  rm -rf "$folder"
}
trap stop EXIT

node() {
  ray start --block --object-store-memory 100000000 --min-worker-port 0 --max-worker-port 0 "$@" &>> "$folder/log" &
  started+=($!)
}

here=127.0.0.1                 # * the address of the head
export RAY_ADDRESS=$here:$port # * for all others
node --head --port "$port" --node-ip-address $here --num-cpus 0 --include-dashboard false --disable-usage-stats \
  --temp-dir "$folder/ray" # * the head, which runs no trials
until ray health-check --address "$RAY_ADDRESS" &> /dev/null; do kill -0 "${started[0]}" && sleep 0.5; done
for _ in $(seq "$workers"); do node --address "$RAY_ADDRESS" --node-ip-address $here --num-cpus "$cpus"; done # * a worker

python - "$((workers + 1))" << 'WAIT'
import sys, time, ray
ray.init(log_to_driver=False, logging_level="ERROR")
until = time.monotonic() + 120
while sum(node["Alive"] for node in ray.nodes()) < int(sys.argv[1]):
    if time.monotonic() > until:
        sys.exit("the cluster is not complete after two minutes")
    time.sleep(0.5)
WAIT

everline sweep "$@" # * from the head, or from any machine that sees the cluster
