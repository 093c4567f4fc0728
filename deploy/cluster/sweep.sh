#!/usr/bin/env bash
# A Ray cluster of a head and WORKERS workers, each with CPUS CPUs, by plain `ray start`; `everline sweep` on it; its end.
#
#     deploy/cluster/sweep.sh WORKERS CPUS --method coreset,padim --data DIR... --out DIR
#
# All of them are on this machine, to try it. On several, what is marked with a star is done on each machine by
# itself; what they must share is in docs/clusters.md. `ray` and `everline` must be found: activate the environment first.
set -euo pipefail

workers=${1:?how many} cpus=${2:?of each}
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

node() { # starts one, and waits until it has joined: two that start at once on one machine may take the same files
  local log=$folder/${#started[@]}.log
  ray start --block --object-store-memory 100000000 --min-worker-port 0 --max-worker-port 0 "$@" &> "$log" &
  started+=($!)
  until grep -q "Ray runtime started" "$log"; do
    kill -0 "${started[-1]}" 2> /dev/null || { cat "$log" >&2 && exit 1; }
    sleep 0.2
  done
}

export RAY_ADDRESS=127.0.0.1:$port # * the head's, for all others
# * The head, which runs no trials; the port is 6379 where none is given.
node --head --port "$port" --num-cpus 0 --include-dashboard false --disable-usage-stats --temp-dir "$folder/ray"
# * A worker.
for _ in $(seq "$workers"); do node --address "$RAY_ADDRESS" --num-cpus "$cpus"; done
# * The sweep: from the head, or from any machine of the cluster.
everline sweep "$@"
