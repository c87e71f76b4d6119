#!/usr/bin/env bash
# What a GPU shows in twelve minutes: the large loss, training of ViT-B-32, texts to vectors, and SimCLR.
#
#   benchmarks/gpu.sh [FOLDER]        tables and JSON in FOLDER, by default runs/gpu
#
# Every part runs by itself, in a time of its own, and writes what it has measured at once: one that fails or is cut off
# takes nothing from the others. PYTHON names the interpreter.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
python=${PYTHON:-python}
out=$(realpath -m "${1:-../runs/gpu}")
mkdir -p "$out"

"$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' || {
  echo "gpu.sh: no CUDA device here, so nothing was measured" >&2
  exit 2
}

part() { # NAME SECONDS SCRIPT ARGUMENTS...
  local name=$1 seconds=$2 script=$3
  shift 3
  echo "== $name (at most $seconds s)"
  timeout --signal=INT --kill-after=10 "$seconds" "$python" -u "$script" "$@" 2>"$out/$name.log" | tee "$out/$name.txt"
  local status=${PIPESTATUS[0]}
  [ "$status" = 0 ] || echo "$name ended with $status; see $out/$name.log"
}

part loss 200 loss_gpu.py --sizes 8192 32768 131072 524288 1048576 --rounds 5 --seconds 15 --out "$out/loss.json"
part encode 120 encode_text.py --device cuda --texts 20000 --minutes 1.5 --out "$out/encode.json"
part train_clip 220 train_clip.py --device cuda --case vit --rounds 3 --out "$out/train_clip.json"
part simclr 150 cifar10_table.py --methods simclr --seeds 1 --set training.epochs=6 --out "$out/cifar10_table"
