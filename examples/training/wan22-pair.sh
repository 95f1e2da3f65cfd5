#!/bin/bash
# The two experts of Wan 2.2, one after the other, each on its side of the noise levels: two runs, two LoRAs.
set -euo pipefail
recipe=${1:-pro}
for expert in high low; do
  torchrun --nproc-per-node 8 -m svi.cli train "$recipe" "model.expert=$expert" --out "runs/$recipe-$expert" "${@:2}"
done
echo "svi generate --model wan2.2-i2v-a14b --preset $recipe --lora runs/$recipe-high/lora.safetensors --lora runs/$recipe-low/lora.safetensors"
