#!/usr/bin/env bash
# The Prefect UI on this machine: server on loopback, pools, deployments and automations, one worker a pool.
# With QUAD_CONFIG=config.yaml the deployments run that configuration unless told otherwise, the refresh every night.
# Ctrl-C ends them all; started again, it finds everything as it was.
set -euo pipefail
ROOT=$(realpath "$(dirname "$0")/..")
BIN=${QUAD_BIN:-$ROOT/.venv/bin}
[ -z "${QUAD_CONFIG:-}" ] || [ -r "$QUAD_CONFIG" ] || { echo "expected a configuration at $QUAD_CONFIG, found none" >&2; exit 2; }
PORT=${PREFECT_PORT:-4200}
export PREFECT_API_URL="http://127.0.0.1:$PORT/api"
export PREFECT_SERVER_ANALYTICS_ENABLED=false DO_NOT_TRACK=1
export PREFECT_FLOWS_HEARTBEAT_FREQUENCY=30

stop() {
    trap - EXIT INT TERM
    kill $(jobs -pr) 2>/dev/null || true
    for _ in $(seq 30); do [ -n "$(jobs -pr)" ] || return 0; sleep 0.5; done
    kill -KILL $(jobs -pr) 2>/dev/null || true # a worker may wait for its server, which is gone
}
trap stop EXIT INT TERM
"$BIN/prefect" server start --host 127.0.0.1 --port "$PORT" &
"$BIN/python" "$ROOT/infra/bootstrap.py" server ${QUAD_CONFIG:+--config "$QUAD_CONFIG"}
"$BIN/prefect" worker start --pool quad-cpu --type process &
"$BIN/prefect" worker start --pool quad-gpu --type process &
echo "Prefect UI: http://127.0.0.1:$PORT"
wait
