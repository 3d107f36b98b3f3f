#!/usr/bin/env bash
# Several Ray nodes on one machine, to try out what a cluster does.
#
#   cluster/local-nodes.sh start [NODES]   a head and workers, 3 nodes unless said otherwise; prints how to reach them
#   cluster/local-nodes.sh stop            ends these nodes, and no other Ray of this machine
#
# Settings, from the environment:
#   LOCAL_NODES_DIR    where all of it is kept (/tmp/local-nodes; keep it short, sockets are in it); two folders, two clusters
#   LOCAL_NODES_PORT   the first of the four ports taken: Ray's, the dashboard's (jobs'), its agent's, Ray Client's (6390)
#   LOCAL_NODES_CPUS   CPUs that each node says it has (1)
#   LOCAL_NODES_GPUS   GPUs that each node says it has (0: otherwise each would count the machine's GPUs as its own)
set -euo pipefail

folder=${LOCAL_NODES_DIR:-/tmp/local-nodes}
port=${LOCAL_NODES_PORT:-6390}
cpus=${LOCAL_NODES_CPUS:-1}
gpus=${LOCAL_NODES_GPUS:-0}
address=127.0.0.1:$port
pids=$folder/pids
# Ray writes a file here that other programs find a Ray by: these nodes are found by their address alone.
export RAY_TMPDIR=$folder RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$folder/token RAY_USAGE_STATS_ENABLED=0
unset RAY_ADDRESS RAY_AUTH_TOKEN

node() {
  local log=$folder/$1.log temporary=$folder/ray-$1
  shift
  # A folder each: a node unpacks the working directory of a job over the files that processes of another node run.
  setsid ray start --block --temp-dir "$temporary" --num-cpus "$cpus" --num-gpus "$gpus" --object-store-memory 100000000 \
    --node-ip-address 127.0.0.1 "$@" >"$log" 2>&1 &
  echo $! >>"$pids"
}

# The nodes' own processes that are up. A number may be somebody else's by now: ours name the folder.
alive() {
  local pid
  [[ -s $pids ]] || return 0
  while read -r pid; do
    if grep -qsF -- "$folder/ray-" "/proc/$pid/cmdline"; then echo "$pid"; fi
  done <"$pids"
}

# All that given processes have started, and all in the sessions that they lead.
family() {
  ps -eo pid=,ppid=,sid= | awk -v roots="$*" '
    BEGIN { n = split(roots, root, " "); for (i = 1; i <= n; i++) ours[root[i]] = leads[root[i]] = 1 }
    { parent[$1] = $2; if ($3 in leads) ours[$1] = 1 }
    END {
      do {
        more = 0
        for (pid in parent) if (!(pid in ours) && parent[pid] in ours) { ours[pid] = 1; more = 1 }
      } while (more)
      for (pid in ours) if (pid in parent) print pid
    }'
}

open_port() {
  (: <>"/dev/tcp/127.0.0.1/$1") 2>/dev/null
}

# await LOG WHAT COMMAND...: until the command succeeds, for at most two minutes.
await() {
  local log=$folder/$1.log what=$2 deadline=$((SECONDS + 120))
  shift 2
  until "$@"; do
    if ((SECONDS > deadline)) || grep -qs "Traceback" "$log"; then
      echo "error: $what did not come up:" >&2
      tail -n 5 "$log" >&2
      exit 1
    fi
    sleep 0.2
  done
}

start() {
  local nodes=${1:-3}
  if [[ -n $(alive) ]]; then
    echo "error: nodes are running from $folder: stop them, or set LOCAL_NODES_DIR" >&2
    exit 2
  fi
  mkdir -p "$folder"
  chmod 700 "$folder"
  rm -f "$folder"/*.log
  : >"$pids"
  (umask 077 && od -An -N32 -tx1 /dev/urandom | tr -d ' \n' >"$folder/token")
  node head --head --port "$port" --dashboard-host 127.0.0.1 --dashboard-port $((port + 1)) \
    --dashboard-agent-listen-port $((port + 2)) --ray-client-server-port $((port + 3))
  await head "the head" open_port "$port"
  for number in $(seq 2 "$nodes"); do
    node "worker-$number" --address "$address"
  done
  for name in head $(seq --format "worker-%g" 2 "$nodes"); do
    await "$name" "$name" grep -qs "Ray runtime started" "$folder/$name.log" # a log is not there at once
  done
  await head "the dashboard" open_port $((port + 1))
  cat <<EOF
$nodes nodes are up, logs in $folder. To use them:
  export RAY_ADDRESS=$address RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$folder/token
  ray job submit --address http://127.0.0.1:$((port + 1)) --working-dir . -- python jobs/train.py --storage-path /some/where
EOF
}

stop() {
  local nodes started
  mapfile -t nodes < <(alive)
  if ((${#nodes[@]} == 0)); then
    echo "nothing runs from $folder"
    return
  fi
  mapfile -t started < <(family "${nodes[@]}")
  kill -TERM "${nodes[@]}" 2>/dev/null || true
  for _ in $(seq 50); do
    [[ -z $(alive) ]] && break
    sleep 0.1
  done
  for _ in 1 2; do # a node that was ending may have started something until it did
    kill -KILL "${started[@]}" 2>/dev/null || true
    mapfile -t started < <(family "${nodes[@]}")
    ((${#started[@]})) || break
    sleep 0.2
  done
  rm -f "$pids" "$folder/token"
  echo "stopped what ran from $folder"
}

case ${1:-} in
  start) start "${2:-3}" ;;
  stop) stop ;;
  *)
    sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0" >&2
    exit 2
    ;;
esac
