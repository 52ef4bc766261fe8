#!/usr/bin/env bash
# Opens the report of a study in headless Chromium and fails on a console message, a request that
# leaves the file, or a picture of nothing.
#
# usage: open_report.sh RESULTS_FOLDER
set -euo pipefail
page=$(find "$1" -name index.html -path '*report*' | sort | head -n 1)
[ -n "$page" ] || { echo "no report below $1" >&2; exit 1; }
profile=$(mktemp -d)
trap 'rm -rf "$profile"' EXIT

browser() {
  chromium --headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking \
    --disable-component-update --disable-sync --user-data-dir="$profile" --enable-logging=stderr --v=0 \
    --host-resolver-rules='MAP * ~NOTFOUND' "$@" "file://$(realpath "$page")"
}

browser --window-size=1200,1600 --screenshot="$profile/report.png" >/dev/null 2>"$profile/log"
if grep -E 'CONSOLE|net::ERR_' "$profile/log"; then
  echo "the report wrote to the console or asked for something outside the file" >&2
  exit 1
fi
[ "$(wc -c <"$profile/report.png")" -gt 20000 ] || { echo "the report renders to an almost empty picture" >&2; exit 1; }
browser --dump-dom >"$profile/dom.html" 2>/dev/null
[ "$(grep -o '<h1' "$profile/dom.html" | wc -l)" -eq 1 ] || { echo "the report has not exactly one h1" >&2; exit 1; }
if grep -oE '(src|href)="https?://[^"]*"' "$profile/dom.html"; then
  echo "the report refers to the network" >&2
  exit 1
fi
echo "$page: $(wc -c <"$page") bytes, opened without a console message"
