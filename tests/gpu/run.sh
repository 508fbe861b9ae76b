#!/usr/bin/env bash
# Everything that is to be measured on a card, ordered by value, into a folder: tests/gpu/run.sh OUT [options]
# Interrupt it and call it again: what is finished is not run twice. --miniature --device cpu tries all of it without a card.
# PYTHON names the interpreter, one with the plugin, its "test" extra and sd-scripts' requirements. On a machine without a network
# WHEELS names a folder of wheels for what it lacks; they are installed for this call alone, as they are.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
python=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || command -v python3)}
export PYTHONPATH="$PWD:$PWD/tests${PYTHONPATH:+:$PYTHONPATH}" HF_HUB_OFFLINE=1
if [ -n "${WHEELS:-}" ]; then
    site=$(mktemp -d)
    "$python" -m pip install --quiet --no-index --no-deps --target "$site" "$WHEELS"/*.whl
    export PYTHONPATH="$site:$PYTHONPATH"
fi
exec "$python" -m gpu.run "$@"
