# One guest with one disk, from plug to unplug.
id=$(guest_define) || exit 1
disk_plug $id xvda 64M || exit 1
guest_start
guest_await done 240 && disk_show $id xvda
guest_wait 60
