#!/usr/bin/env bash
# Every test, with the real components they ran against, and a closing line that counts them.
set -uo pipefail
cd "$(dirname "$0")/.."

bin=$(ls -d /usr/lib/postgresql/*/bin 2>/dev/null | sort -V | tail -n 1)
version() { sed -n "/^name = \"$1\"/{n;s/version = \"\(.*\)\"/\1/p;}" Cargo.lock | head -n 1; }

log=$(mktemp)
trap 'rm -f "$log"' EXIT
if cargo nextest --version >/dev/null 2>&1; then
  cargo nextest run --no-fail-fast "$@" 2>&1 | tee "$log"
  status=${PIPESTATUS[0]}
  line=$(grep -E '^ *Summary ' "$log" | tail -n 1)
  passed=$(sed -n 's/.*: \([0-9]*\) passed.*/\1/p' <<<"$line")
  failed=$(sed -n 's/.* \([0-9]*\) failed.*/\1/p' <<<"$line")
else
  cargo test --no-fail-fast "$@" 2>&1 | tee "$log"
  status=${PIPESTATUS[0]}
  passed=$(grep -E '^test result' "$log" | sed 's/.* \([0-9]*\) passed.*/\1/' | paste -sd+ | bc 2>/dev/null || grep -cE '^test .* \.\.\. ok' "$log")
  failed=$(grep -cE '^test .* \.\.\. FAILED' "$log")
fi

echo
echo "real components: $("$bin/postgres" --version 2>/dev/null || postgres --version), S3 by s3s-fs $(version s3s-fs), DNS by hickory-server $(version hickory-server), SQLite through sqlx $(version sqlx), ONNX by tract $(version tract-onnx)"
echo "${passed:-0} passed, ${failed:-0} failed"
[ "${passed:-0}" -gt 0 ] || status=1
exit "$status"
