#!/usr/bin/env bash
# tests/gpu/wheels.sh [FOLDER]: what `python -m tests.gpu` needs beside torch and transformers, as wheels for a machine
# without a network (Python 3.12, x86-64 Linux), about 8 MB. There, in this repository:
#   python3 -m pip install --no-index --no-deps --target /tmp/site FOLDER/*.whl
#   PYTHONPATH=/tmp/site python3 -m tests.gpu --out gpu_check.json
set -euo pipefail
folder=${1:-.whl}
python=${PYTHON:-python3}
rm -rf "$folder"
"$python" -m pip download --quiet --no-deps --only-binary=:all: --dest "$folder" \
  --python-version 3.12 --implementation cp \
  --platform manylinux2014_x86_64 --platform manylinux_2_17_x86_64 --platform manylinux_2_28_x86_64 \
  omegaconf==2.4.0 open_clip_torch==3.3.0 ftfy==6.3.1 wcwidth==0.9.4 hjson==3.1.0 py-cpuinfo==9.0.0 \
  pydantic==2.14.4 pydantic_core==2.50.5 annotated-types==0.8.0 typing-inspection==0.4.5 typing_extensions==4.16.0
DS_BUILD_OPS=0 "$python" -m pip wheel --quiet --no-deps --wheel-dir "$folder" deepspeed==0.19.8
du -sh "$folder"
