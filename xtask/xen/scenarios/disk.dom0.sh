# One guest with one disk, from plug to unplug.
id=$(guest_define) && disk_plug $id xvda 64M && guest_start || exit 1
guest_await done 240 || exit 1
disk_show $id xvda
guest_tell shown
guest_wait 60 || exit 1
disk_unplug $id xvda
