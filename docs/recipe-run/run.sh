#!/usr/bin/env bash
# Imports three recipes, runs the one that needs the other two on the offline model and a real MCP server, kills the
# recipe service half-way, and shows how it ends: `docs/recipe-run/run.sh`, recorded in recording.txt by `make recording`.
# It runs a mesh of its own, on free ports and in a folder that is gone afterwards.
set -euo pipefail
cd "$(dirname "$0")/../.."
export PATH="$PWD/.venv/bin:$PATH" GAGGLE_USER=ann COLUMNS=110 NO_COLOR=1
GAGGLE_DATA=$(mktemp -d)
export GAGGLE_DATA
log=$GAGGLE_DATA/run.log
trap 'gaggle down >/dev/null 2>&1 || true; rm -rf "$GAGGLE_DATA"' EXIT

shown() { # a command as it is typed, then what it says
  printf '\n$ %s\n' "$*"
  "$@" 2>&1
}

server=$(PYTHONPATH=$PWD python -c 'from tests.mcp_servers import servers; servers.python_servers(); print(servers.TIME)')
export GAGGLE_STDIO_COMMANDS=mcp-server-time GAGGLE_STDIO_PATH="$(dirname "$server"):/usr/bin:/bin"
export GAGGLE_APP_ID_SUFFIX=-recipe-run
gaggle up --detach --port-base 0 --only conversation --only audit --only extension --only agent --only recipe >/dev/null

shown gaggle recipes import docs/recipe-run/harbour.yaml
shown gaggle recipes list

printf '\n$ %s &\n' 'gaggle recipes run "Harbour report" harbour=Faro --model offline'
gaggle recipes run 'Harbour report' harbour=Faro --model offline >"$log" 2>&1 &
run=$!
# Half-way: some steps have answered, others have not.
until grep -q '4/' "$log"; do kill -0 $run; sleep 0.1; done
before=$(wc -l <"$log")
head -n "$before" "$log"
victim=$(gaggle status --json | python -c 'import json, sys; print(next(one["pid"] for one in json.load(sys.stdin)["services"] if one["name"] == "recipe"))')
printf '\n$ kill -9 %s   # the recipe service\n' "$victim"
kill -9 "$victim"
wait $run
printf '\n$ fg\n'
tail -n "+$((before + 1))" "$log"

execution=$(sed -n 's/^execution //p' "$log")
printf '\n$ %s\n' "gaggle audit events --user ann --entity $execution"
# The log is behind by the time that an event takes through the broker.
for _ in $(seq 100); do
  gaggle audit events --user ann --entity "$execution" >"$GAGGLE_DATA/events"
  if grep -q 'goose.recipe.completed' "$GAGGLE_DATA/events"; then break; fi
  sleep 0.1
done
python - "$GAGGLE_DATA/events" <<'PYTHON'
import json
import sys

for line in open(sys.argv[1]):
    event = json.loads(line)["event"]
    data = event["data"]
    print(f'{event["revision"]:>4}  {event["timestamp"][11:23]}  {event["eventType"]:<30}{data.get("stepName", "")}')
PYTHON

shown gaggle sessions list
shown gaggle sessions usage
