# The guests of life.dom0.sh: one for each phase.

# sums DIRECTORY: a checksum of every file below it, in a stable order.
sums() { (cd "$1" && find . -type f | sort | xargs md5sum); }

make_tree() {
  mkdir -p "$1/small" && cp -a /bin /mod /lib "$1" || return 1
  local i=0
  while [ $i -lt 50 ]; do
    head -c $((i * 397)) /bin/fio >"$1/small/$i"
    i=$((i + 1))
  done
}

phase_fill() {
  disk_present xvda || return 1
  dmesg | grep blkfront
  step "random writes of 512 B to 64 KiB at depth 32, verified"
  verify xvda 8M || return 1

  step "a file system: make, fill, fsync, unmount, check"
  mkfs.ext4 -q -F /dev/xvda && mount -t ext4 /dev/xvda /mnt || return 1
  make_tree /mnt/tree && sums /mnt/tree >/tmp/sums && cp /tmp/sums /mnt/sums || return 1
  dd if=/dev/urandom of=/mnt/synced bs=64k count=16 conv=fsync 2>/dev/null && sync || return 1
  umount /mnt && e2fsck -f -n /dev/xvda || return 1

  step "mount again, compare"
  mount -t ext4 /dev/xvda /mnt && sums /mnt/tree | cmp - /tmp/sums && umount /mnt
}

phase_reboot() {
  disk_present xvda || return 1
  e2fsck -f -n /dev/xvda && mount -t ext4 /dev/xvda /mnt || return 1
  sums /mnt/tree | cmp - /mnt/sums && [ -s /mnt/synced ] && umount /mnt
}

phase_plug() {
  disk_present xvda || return 1
  head -c 1048576 /bin/fio | dd of=/dev/xvda bs=64k conv=fsync 2>/dev/null || return 1
  tell written
  disk_gone xvda || return 1
  tell gone
  disk_present xvda || return 1
  head -c 1048576 /bin/fio | md5sum >/tmp/expected
  head -c 1048576 /dev/xvda | md5sum | cmp - /tmp/expected || return 1
  tell read

  under_io || return 1
  [ "$(await writable)" = 1 ] || return 0
  refused
}

# The disk goes while requests are in flight. They may fail; the guest may not hang, and a disk that is
# plugged again must serve.
under_io() {
  disk_present xvdb || return 1
  fio --name=busy --filename=/dev/xvdb --size=32M --rw=randrw --bs=16k --direct=1 --ioengine=libaio \
    --iodepth=32 --time_based --runtime=300 >/tmp/busy.out 2>&1 &
  local busy=$!
  within 120 wrote_some xvdb || return 1
  sleep 2
  tell busy
  disk_gone xvdb || return 1
  within 120 ended $busy || { echo "fio hangs on a disk that is gone"; return 1; }
  grep -m 1 'error' /tmp/busy.out
  tell torn
  disk_present xvdb && verify xvdb 4M && tell mended
}

# The kernel takes the disk for writable, so what refuses is the back end.
refused() {
  disk_present xvdc || return 1
  [ "$(cat /sys/block/xvdc/ro)" = 0 ] || { echo "the guest knows that xvdc is read-only"; return 1; }
  if verify xvdc 1M >/tmp/refused.out; then echo "a read-only disk took writes"; return 1; fi
  grep -q 'Input/output error' /tmp/refused.out || { cat /tmp/refused.out; return 1; }
  dd if=/dev/xvdc of=/dev/null bs=1M count=4 iflag=direct 2>/dev/null || { echo "it does not read"; return 1; }
  tell refused
}

# The disk grows twice under I/O on what was there before; all of it can be used.
phase_grow() {
  disk_present xvdd && has_mebibytes xvdd 16 || return 1
  fio --name=busy --filename=/dev/xvdd --size=8M --rw=randrw --bs=16k --direct=1 --ioengine=libaio \
    --iodepth=16 --time_based --runtime=3600 >/tmp/busy.out 2>&1 &
  local busy=$!
  within 120 wrote_some xvdd || return 1
  tell small
  within 300 has_mebibytes xvdd 32 || return 1
  verify xvdd 12M --offset=16M || return 1
  tell grown
  within 300 has_mebibytes xvdd 48 || return 1
  dmesg | grep 'Setting capacity'
  verify xvdd 12M --offset=34M || return 1
  kill -0 $busy || { echo "the I/O under way failed"; cat /tmp/busy.out; return 1; }
  kill $busy
  wait $busy
  ! grep 'io_u error' /tmp/busy.out
}

# Writes and reads back until dom0 says that it is enough; an error is the end.
phase_kill() {
  local rounds=0
  disk_present xvda || return 1
  tell busy
  while ! xenstore-read data/to-guest/enough >/dev/null 2>&1 || [ $rounds = 0 ]; do
    verify xvda 4M || { echo "round $rounds: I/O failed, or bytes are not what was written"; return 1; }
    rounds=$((rounds + 1))
  done
  step "$rounds rounds were verified"
  dmesg | grep -i 'i/o error' && return 1
  return 0
}

# It does not notice that it is another domain but by its disk.
phase_move() { phase_kill; }

has_mebibytes() { [ "$(cat "/sys/block/$1/size")" = $(($2 * 2048)) ]; }
wrote_some() { [ "$(awk '{print $5}' "/sys/block/$1/stat")" -gt 100 ]; }
ended() { ! kill -0 "$1"; }

phase_$PHASE
