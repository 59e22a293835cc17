# One disk's whole life, told through the command line; then `vbd show` while the guest is at work.

# tell_call WORDS...: shows a call and what it answers.
tell_call() { echo "\$ zerotap $*" >&2; zerotap "$@" | tee /dev/console; }

ramdisks 384M && mkfs.ext4 -q /dev/ram3 && mount -t ext4 /dev/ram3 /srv || exit 1
id=$(guest_define) || exit 1
sr=$(tell_call sr create --name demo --device-config path=/srv) || exit 1
vdi=$(tell_call vdi create --sr $sr --name "demo disk" --size 256M) || exit 1
use="--domid $id --device xvda"
tell_call vdi attach $vdi $use || exit 1
tell_call vdi activate $vdi $use || exit 1
tell_call vbd plug $use --vdi $vdi || exit 1
guest_start
guest_await busy 240 && sleep 5 && tell_call vbd show $use || exit 1
guest_wait 120 || exit 1
tell_call vbd unplug $use || exit 1
tell_call vdi deactivate $vdi $use || exit 1
tell_call vdi detach $vdi $use || exit 1
tell_call vdi destroy $vdi || exit 1
tell_call sr destroy $sr
