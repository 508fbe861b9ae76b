#!/usr/bin/env bash
# Everything that is to be measured on a card, ordered by value, into a folder: tests/gpu/run.sh OUT [options]
# Interrupt it and call it again: what is finished is not run twice. --miniature --device cpu tries all of it without a card.
# PYTHON names the interpreter, one with PyTorch. Where it has neither the plugin nor what sd-scripts requires, and no network,
# PACK names a folder that tests/gpu/run.sh --pack has filled on a machine with one.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
python=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || command -v python3)}
export PYTHONPATH="$PWD:$PWD/tests${PYTHONPATH:+:$PYTHONPATH}" HF_HUB_OFFLINE=1
if [ "${1:-}" = --pack ]; then
    exec "$python" -m gpu.pack "${@:2}"
fi
if [ -n "${PACK:-}" ]; then
    site=$(mktemp -d)
    "$python" -m pip install --quiet --no-index --no-deps --target "$site" "$PACK"/wheels/*.whl
    # The plugin comes from the repository, and Python reads no .pth file in a folder of PYTHONPATH: the kit starts its hook.
    export PYTHONPATH="$PWD/tests/tinyhost/site:$site:$PYTHONPATH" TINYHOST_HOOK=1
    export SD_SCRIPTS_DIR=${SD_SCRIPTS_DIR:-$(cd "$PACK/sd-scripts" && pwd)}
fi
exec "$python" -m gpu.run "$@"
