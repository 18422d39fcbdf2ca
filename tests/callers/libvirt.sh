#!/bin/bash
# SPDX-License-Identifier: MIT
# libvirt's storage pools, unchanged, with our programs first on PATH: a session daemon of an ordinary user makes, clones, resizes,
# describes and removes volumes; each command line that reaches qemu-img is ours to answer. QEMU's own tools judge what came of it.
# The environment as for tests/cli; QCOW_COMPAT names the folder with our programs.
source "$(dirname "$0")/../cli/lib.sh"
need_qemu
for program in virsh libvirtd; do
	command -v "$program" >/dev/null || skip_all "$program is not there (Debian: libvirt-clients, libvirt-daemon)"
done
user=
if [[ $EUID == 0 ]]; then
	user=nobody
	command -v setpriv >/dev/null || skip_all "setpriv is not there, and the daemon is not to run as root"
fi
mkdir bin home run pool
for name in qemu-img qemu-io qemu-nbd; do cp "$QCOW_COMPAT/$name" "bin/$name.real" && mkdir -p "real" && mv "bin/$name.real" "real/$name"; done
cat >bin/qemu-img <<EOS
#!/bin/bash
printf '%s\n' "\$*" >>$work/calls
exec $work/real/qemu-img "\$@"
EOS
chmod 755 bin/qemu-img . && : >calls
chmod 666 calls
if [[ -n $user ]]; then chown -R "$user" home run pool; fi
as_user() {
	local words=(env -i PATH="$work/bin:$PATH" HOME="$work/home" XDG_RUNTIME_DIR="$work/run" LC_ALL=C "$@")
	if [[ -n $user ]]; then words=(setpriv --reuid="$user" --regid="$(id -g "$user")" --clear-groups "${words[@]}"); fi
	"${words[@]}"
}
# a daemon of this test alone, which ends with it
as_user libvirtd --timeout 120 >daemon.log 2>&1 &
daemon=$!
# shellcheck disable=SC2064 # now
trap "kill $daemon 2>/dev/null; wait $daemon 2>/dev/null; rm -rf '$work'" EXIT
virsh_() { as_user timeout 60 virsh -q -c qemu:///session "$@"; }
for _ in {1..100}; do
	virsh_ version >/dev/null 2>err && break
	kill -0 $daemon 2>/dev/null || skip_all "libvirtd does not start here: $(tail -n 1 daemon.log)"
	sleep 0.2
done
virsh_ version >/dev/null 2>err || skip_all "libvirtd does not answer here: $(tail -n 1 err)"

# vol NAME: what QEMU says of it
is_clean() { # NAME FILE
	run "$QEMU_IMG" check -q "$2"
	if [[ $rc == 0 ]]; then ok "$1 is clean"; else bad "$1 is clean" "$(shown)"; fi
}
xml_has() { # NAME VOLUME TEXT...
	local name=$1 volume=$2 text
	shift 2
	run virsh_ vol-dumpxml --pool p "$volume"
	for text in "$@"; do
		if ! grep -qF "$text" out; then bad "$name" "no $text: $(shown)"; return; fi
	done
	ok "$name"
}
expect 'a pool' 0 virsh_ pool-create-as p dir --target "$work/pool"
expect 'vol-create-as qcow2' 0 virsh_ vol-create-as p a.qcow2 64M --format qcow2
is_clean a.qcow2 pool/a.qcow2
xml_has 'vol-dumpxml' a.qcow2 "<capacity unit='bytes'>67108864</capacity>" "<format type='qcow2'/>"
expect 'vol-create-as raw' 0 virsh_ vol-create-as p raw.img 8M --format raw
[[ $(stat -c %s pool/raw.img) == 8388608 ]] && ok 'raw has its size' || bad 'raw has its size'
expect 'vol-create-as with a backing volume' 0 virsh_ vol-create-as p over.qcow2 128M --format qcow2 --backing-vol a.qcow2 --backing-vol-format qcow2
is_clean over.qcow2 pool/over.qcow2
xml_has 'backing store in vol-dumpxml' over.qcow2 "<path>$work/pool/a.qcow2</path>" "<format type='qcow2'/>" "134217728"
cat >features.xml <<'EOS'
<volume><name>features.qcow2</name><capacity unit='MiB'>32</capacity><target><format type='qcow2'/>
<compat>1.1</compat><clusterSize unit='KiB'>128</clusterSize><features><lazy_refcounts/><extended_l2/></features></target></volume>
EOS
sed 's/<extended_l2\/>//; s/features.qcow2/lazy.qcow2/' features.xml >lazy.xml
expect 'vol-create with features' 0 virsh_ vol-create p lazy.xml
xml_has 'features in vol-dumpxml' lazy.qcow2 '<compat>1.1</compat>' '<lazy_refcounts/>'
run virsh_ vol-create p features.xml
if [[ $rc == 0 ]]; then is_clean features.qcow2 pool/features.qcow2; else echo "SKIP this libvirt does not know extended_l2"; fi
expect 'vol-create-as with preallocated metadata' 0 virsh_ vol-create-as p pre.qcow2 16M --format qcow2 --prealloc-metadata
is_clean pre.qcow2 pool/pre.qcow2
expect 'vol-resize' 0 virsh_ vol-resize --pool p a.qcow2 96M
expect 'vol-resize --delta' 0 virsh_ vol-resize --pool p a.qcow2 4M --delta
expect 'vol-resize --shrink' 0 virsh_ vol-resize --pool p a.qcow2 80M --shrink
expect 'vol-resize raw' 0 virsh_ vol-resize --pool p raw.img 12M
[[ $("$QEMU_IMG" info pool/a.qcow2) == *"(83886080 bytes)"* ]] && ok 'what the resizes left' || bad 'what the resizes left'
run as_user "$QEMU_IO" -c 'write -q -P 5 1M 3M' pool/a.qcow2
expect 'vol-clone' 0 virsh_ vol-clone --pool p a.qcow2 clone.qcow2
expect 'clones are identical' 0 "$QEMU_IMG" compare pool/a.qcow2 pool/clone.qcow2
is_clean clone.qcow2 pool/clone.qcow2
printf "<volume><name>conv.img</name><capacity unit='MiB'>80</capacity><target><format type='raw'/></target></volume>" >conv.xml
expect 'vol-create-from: qcow2 to raw' 0 virsh_ vol-create-from p conv.xml a.qcow2 --inputpool p
expect 'it is the disk' 0 "$QEMU_IMG" compare -f qcow2 -F raw pool/a.qcow2 pool/conv.img
# LUKS in qcow2, the passphrase by libvirt's own secret
cat >secret.xml <<'EOS'
<secret ephemeral='no' private='no'><usage type='volume'><volume>luks</volume></usage></secret>
EOS
uuid=$(as_user timeout 60 virsh -c qemu:///session secret-define secret.xml 2>err | grep -oE '[0-9a-f-]{36}')
if [[ -n $uuid ]] && virsh_ secret-set-value "$uuid" "$(printf open-sesame | base64)" >/dev/null 2>&1; then
	cat >luks.xml <<EOS
<volume><name>luks.qcow2</name><capacity unit='MiB'>16</capacity><target><format type='qcow2'/>
<encryption format='luks'><secret type='passphrase' uuid='$uuid'/></encryption></target></volume>
EOS
	expect 'vol-create of a LUKS volume' 0 virsh_ vol-create p luks.xml
	[[ $("$QEMU_IMG" info pool/luks.qcow2) == *'encrypted: yes'* ]] && ok 'it is encrypted' || bad 'it is encrypted'
	run "$QEMU_IO" --object secret,id=s,data=open-sesame --image-opts -r -c 'read -P 0 0 1M' driver=qcow2,file.filename=pool/luks.qcow2,encrypt.key-secret=s
	if [[ $rc == 0 ]] && ! grep -q failed out; then ok 'its passphrase opens it'; else bad 'its passphrase opens it' "$(shown)"; fi
else
	echo "SKIP this libvirt keeps no secrets: $(head -n 1 err)"
fi
expect 'pool-refresh' 0 virsh_ pool-refresh p
expect 'vol-list' 0 virsh_ vol-list p --details
expect 'vol-delete' 0 virsh_ vol-delete --pool p clone.qcow2
says 'no volume of another format' 1 '*' virsh_ vol-create-as p a.vmdk 64M --format vmdk
grep -q "Unknown file format 'vmdk'" err && ok 'and libvirt passes our reason on' || bad 'and libvirt passes our reason on' "$(shown)"
for command in create convert resize; do
	if grep -q "^$command " calls; then ok "qemu-img $command was ours"; else bad "qemu-img $command was ours" "$(<calls)"; fi
done
finish
