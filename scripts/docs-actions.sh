#!/usr/bin/env bash
# Writes docs/actions.md: for each action the head of its own file, then what the program itself says of it.
# With `-` it goes to stdout, which is how a test sees whether the file is current.
set -euo pipefail
cd "$(dirname "$0")/.."
muster=${MUSTER:-target/debug/muster}

page() {
  cat <<'HEAD'
# The actions

Made by `scripts/docs-actions.sh` from the program (`muster actions NAME`) and the head of each action's file; a test
holds that it is current. The effect says what a lost answer means: `read` is run again, `repeatable` may be sent
again (the same intent twice is once), `observable` is looked at, `one_shot` waits for a person. `approval` is a step
of the engine's own: see [runbooks.md](runbooks.md).
HEAD
  local name
  for name in $("$muster" actions | awk 'NR > 1 && $1 ~ /\./ { print $1 }'); do
    printf '\n## %s\n\n' "$name"
    sed -n 's|^//! \{0,1\}||p' "src/actions/${name//./_}.rs"
    printf '\n```text\n'
    "$muster" actions "$name" | sed 's/[[:space:]]*$//' | sed -e :a -e '/^\n*$/{$d;N;ba' -e '}'
    printf '```\n'
  done
}

if [ "${1:-}" = - ]; then page; else page > docs/actions.md; fi
