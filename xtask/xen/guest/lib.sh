# What a scenario's script in the guest may call.

# disk_present DEVICE [SECONDS]: waits for /dev/DEVICE.
disk_present() { within "${2:-300}" [ -b "/dev/$1" ]; }

# disk_gone DEVICE [SECONDS]: waits until it is not there any more.
disk_gone() { within "${2:-300}" [ ! -b "/dev/$1" ]; }

# within SECONDS COMMAND...: tries until the command succeeds.
within() {
  local left=$(($1 * 5))
  shift
  until "$@" >/dev/null 2>&1; do
    left=$((left - 1))
    [ $left -gt 0 ] || { echo "never true: $*"; return 1; }
    usleep 200000
  done
}

# tell WORD, await WORD [SECONDS]: the other end of dom0's guest_await and guest_tell; await prints what
# dom0 told. A domain may write below `data`, and a relative path starts at the domain's own directory.
tell() { xenstore-write "data/from-guest-$1" 1; }
await() { within "${2:-300}" xenstore-read "data/to-guest/$1" && xenstore-read "data/to-guest/$1"; }

# step WORDS...: says in the console what the scenario does now.
step() { echo "$(cut -d. -f1 /proc/uptime) s: $*"; }

# verify DEVICE SIZE [FIO OPTION...]: writes every block with a checksum, in random order and sizes and
# with a full ring, then reads all of it back.
verify() {
  local device=$1 size=$2
  shift 2
  fio --name=verify --filename="/dev/$device" --size="$size" --rw=randwrite --bsrange=512-64k \
    --direct=1 --ioengine=libaio --iodepth=32 --verify=crc32c --do_verify=1 --verify_fatal=1 \
    --minimal "$@" >/tmp/fio.out 2>&1 || { cat /tmp/fio.out; return 1; }
}
