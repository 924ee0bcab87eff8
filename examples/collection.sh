#!/bin/sh
# Takes one collection from nothing to latents: steps 1 to 3 of collections.md. Run it again to continue where it stopped.
#
#   examples/collection.sh NAME DIR [small|all [OPTIONS]]
#
# NAME is jdb, cc12m, diffdb, sa1b, textcaps or coco; DIR gets data/, mds/ and latents/. OPTIONS go to `latentq encode` in
# place of `--recipe micro-diffusion`. jdb needs HF_TOKEN; sa1b needs its list of links as DIR/sa1b_links.tsv.
set -eu

name=${1:?"which collection: jdb, cc12m, diffdb, sa1b, textcaps or coco"}
dir=${2:?"the folder that gets data/, mds/ and latents/"}
subset=${3:-all}
shift $(($# < 3 ? $# : 3))
[ $# -gt 0 ] || set -- --recipe micro-diffusion

# prepare ARCHIVES OUT CAPTIONS OPTIONS; CAPTIONS is empty if the captions are in the archives.
prepare() {
  archives=$dir/data/$name/$1 out=$2 captions=${3:+$dir/data/$name/$3}
  shift 3
  latentq shards "$archives" "$dir/mds/$out" --collection "$name" ${captions:+--captions "$captions"}
  latentq encode "$dir/mds/$out" "$dir/latents/$out" "$@"
}

links=
[ "$name" != sa1b ] || links=$dir/sa1b_links.tsv
latentq collect "$name" "$dir/data/$name" --subset "$subset" ${links:+--links "$links"}
case $name in
jdb)
  prepare 'data/train/imgs/*.tgz' jdb-train data/train/train_anno_realease_repath.jsonl.tgz "$@"
  prepare 'data/valid/imgs/*.tgz' jdb-valid data/valid/valid_anno_repath.jsonl.tgz "$@"
  ;;
cc12m) prepare '*.tar' cc12m '' "$@" ;;
diffdb) prepare '*/*.zip' diffdb metadata-large.parquet "$@" ;;
sa1b) prepare '*.tar' sa1b SA1B_caption.tar.gz "$@" ;;
textcaps) prepare '**/*.parquet' textcaps '' "$@" ;;
coco) prepare val2014.zip coco annotations_trainval2014.zip "$@" ;;
esac
