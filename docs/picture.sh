#!/bin/sh
# Take docs/images/report.png from a report: sh docs/picture.sh [etude-report/report.html]
set -eu
page=$(realpath "${1:-etude-report/report.html}")
profile=$(mktemp -d)
trap 'rm -rf "$profile"' EXIT
"${BROWSER:-chromium}" --headless --no-sandbox --disable-gpu --disable-quic --no-first-run \
  --disable-background-networking --disable-component-update --disable-sync --hide-scrollbars \
  --user-data-dir="$profile" --window-size=1000,"${HEIGHT:-950}" \
  --screenshot="$(dirname "$(realpath "$0")")/images/report.png" "file://$page" 2>/dev/null
