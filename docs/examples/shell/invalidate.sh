#!/usr/bin/env bash
# Ends a person's sessions everywhere, and waits until every target is done.
#
#   ENDSESSION_URL=https://gateway.example:8080 ENDSESSION_API_KEY_FILE=helpdesk.key invalidate.sh alice "laptop stolen"
#
# Needs curl and jq. Exit status: 0 if every target succeeded; 1 if some did not; 2 if the call was refused; 4 if it was
# accepted, and is not done after PATIENCE seconds (600): the gateway goes on with it.
set -euo pipefail

user=${1:?usage: invalidate.sh USER [REASON]}
reason=${2:-by the example}
url=${ENDSESSION_URL:-http://127.0.0.1:8080}
deadline=$((SECONDS + ${PATIENCE:-600}))

answer=$(mktemp)
headers=$(mktemp) # of the request: a key that is an argument of curl is shown to everybody on the machine
trap 'rm -f "$answer" "$headers"' EXIT
if [[ -n ${ENDSESSION_API_KEY_FILE:-} ]]; then
  printf 'Authorization: Bearer %s\n' "$(<"$ENDSESSION_API_KEY_FILE")" >"$headers"
fi

# call PATH [BODY]: sends it, and again while there is no answer or one that says to come back. Everything that is sent
# here can be sent again: the request id makes it the same call. The answer is in $answer, its HTTP status in $status.
call() {
  local wait=1 body=()
  (($# == 1)) || body=(-H 'Content-Type: application/json' --data-binary "$2")
  while true; do
    status=$(curl -s --max-time 90 -o "$answer" -w '%{http_code}' -H "@$headers" "${body[@]}" "$url$1") || status=000
    case $status in
    200 | 202) return ;;
    000 | 429 | 503 | 504) ;;
    *)
      jq -r '"refused: \(.details[0].reason // "?"): \(.message)"' "$answer" >&2 || echo "refused: HTTP $status" >&2
      exit 2
      ;;
    esac
    if ((SECONDS + wait > deadline)); then
      echo "no answer from $url (HTTP $status); repeat it with the request id $id" >&2
      exit 2
    fi
    sleep "$wait"
    wait=$((wait < 16 ? wait * 2 : 30))
  done
}

id=${REQUEST_ID:-$(</proc/sys/kernel/random/uuid)}
call /v1/sessions:invalidate "$(jq -n --arg user "$user" --arg reason "$reason" --arg id "$id" \
  '{selector: {user: {id: $user}}, reason: $reason, requestId: $id, waitTimeout: "10s"}')"
name=$(jq -r .invalidation.name "$answer")
# 202: accepted, and not done yet. What was accepted is not lost, so from here on it is only asked for.
while [[ $(jq -r .invalidation.state "$answer") == INVALIDATION_STATE_RUNNING ]]; do
  left=$((deadline - SECONDS))
  ((left > 0)) || break
  call "/v1/$name?waitTimeout=$((left < 60 ? left : 60))s"
done

jq -r '.invalidation
  | "\(.name): \(.state | ltrimstr("INVALIDATION_STATE_"))",
    (.runs[] | .target as $target
      | "\($target): \(.state | ltrimstr("RUN_STATE_")), sessions ended: \(.invalidatedCount // "unknown")\(if .countIsMinimum then " or more" else "" end)",
        (.warnings[]? | "\($target): warning \(.code): \(.message)"),
        (.error // empty | "\($target): \(.reason): \(.message)"))' "$answer"
case $(jq -r .invalidation.state "$answer") in
INVALIDATION_STATE_SUCCEEDED) exit 0 ;;
INVALIDATION_STATE_RUNNING) exit 4 ;;
*) exit 1 ;;
esac
