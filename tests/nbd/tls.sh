#!/bin/bash
# SPDX-License-Identifier: MIT
# TLS of the NBD server: x509 with and without a look at the client's certificate, pre-shared keys, what is required and what is
# allowed; the clients are nbdinfo and nbdcopy.
set -u
skip() { echo "skipped: $1"; exit 77; }
for program in certtool psktool nbdinfo nbdcopy; do
	command -v "$program" >/dev/null || skip "$program is not there (tools/packages tests)"
done
work=$(mktemp -d)
bed=
stop() { # its own exit status counts, and what a sanitizer said
	local pid=$bed
	bed=
	[[ -z $pid ]] && return
	exec 9>&-
	wait "$pid" || { cp bed.err err; bad "the server ends well"; }
}
trap 'stop; rm -rf "$work"' EXIT
cd "$work" || exit 1
passed=0 failed=0
ok() { passed=$((passed + 1)); }
bad() { failed=$((failed + 1)); echo "FAIL $1"; sed 's/^/  /' out err; }
# does NAME COMMAND…: it succeeds; fails NAME COMMAND…: it does not, and says why
does() { local name=$1; shift; if timeout 60 "$@" >out 2>err; then ok; else bad "$name"; fi; }
fails() { local name=$1; shift; if timeout 60 "$@" >out 2>err; then bad "$name"; else ok; fi; }
serve() {
	local i
	stop
	rm -f s in
	mkfifo in
	"$NBD_BED" s --export disk,memory,8388608 --export secret,memory,65536,tls "$@" <in >bed.out 2>bed.err &
	bed=$!
	exec 9>in
	for i in {1..200}; do [[ -S s ]] && return; sleep 0.05; done
	bad "the server starts"
}

authority() { # DIR: a certificate authority
	mkdir -p "$1"
	certtool --generate-privkey --key-type ed25519 --outfile "$1/ca-key.pem" 2>/dev/null
	printf 'cn = "test"\nca\ncert_signing_key\nexpiration_days = 9\n' >ca.info
	certtool --generate-self-signed --load-privkey "$1/ca-key.pem" --template ca.info --outfile "$1/ca-cert.pem" 2>/dev/null
}
signed() { # DIR NAME KIND: a key and a certificate of DIR's authority
	certtool --generate-privkey --key-type ed25519 --outfile "$1/$2-key.pem" 2>/dev/null
	printf 'cn = "localhost"\ndns_name = "localhost"\n%s\nsigning_key\nexpiration_days = 9\n' "$3" >one.info
	certtool --generate-certificate --load-privkey "$1/$2-key.pem" --load-ca-certificate "$1/ca-cert.pem" \
		--load-ca-privkey "$1/ca-key.pem" --template one.info --outfile "$1/$2-cert.pem" 2>/dev/null
}
authority good
signed good server tls_www_server
signed good client tls_www_client
authority other
signed other client tls_www_client
signed good another tls_www_server
mkdir swapped # a server's certificate, shown by a client
cp good/ca-cert.pem swapped
for what in key cert; do cp "good/another-$what.pem" "swapped/client-$what.pem"; done
cp good/ca-cert.pem other/ca-cert.pem # it trusts the server, which does not trust it
mkdir nobody
cp good/ca-cert.pem nobody
psktool -u alice -p keys.psk >/dev/null 2>&1
psktool -u alice -p wrong.psk >/dev/null 2>&1
head -c 3000000 /dev/urandom >data
x509() { echo "nbds+unix://localhost/$1?socket=$PWD/s&tls-certificates=$PWD/$2"; }
# nbdinfo verifies the name of who it talks to; a Unix socket has none but what the URI says
plain() { echo "nbd+unix:///$1?socket=$PWD/s"; }
psk() { echo "nbds+unix://alice@localhost/$1?socket=$PWD/s&tls-psk-file=$PWD/$2"; }
copy() { # NAME URI: there and back
	does "$1: there" nbdcopy data "$2"
	does "$1: back" nbdcopy "$2" back
	cmp -n 3000000 data back >/dev/null && ok || bad "$1: the same"
}

serve --tls require --certs good
copy "certificates" "$(x509 disk good)"
does "a client without one" nbdinfo "$(x509 disk nobody)"
fails "clear text" nbdinfo "$(plain disk)"
fails "clear text is told nothing" nbdinfo --list "$(plain '')"
does "a list" nbdinfo --list "$(x509 '' good)"
does "an export that needs TLS" nbdinfo "$(x509 secret good)"

serve --tls require --certs good --verify yes
copy "verified" "$(x509 disk good)"
fails "a client without a certificate" nbdinfo "$(x509 disk nobody)"
fails "one that somebody else signed" nbdinfo "$(x509 disk other)"
fails "one that is for servers" nbdinfo "$(x509 disk swapped)"
does "the next one" nbdinfo "$(x509 disk good)"

serve --tls allow --certs good
copy "allowed" "$(x509 disk good)"
copy "allowed, clear text" "$(plain disk)"
fails "an export that needs TLS" nbdinfo "$(plain secret)"
does "and gets it" nbdinfo "$(x509 secret good)"
does "a list in clear text" nbdinfo --list "$(plain '')"
grep -q '"secret"' out && bad "it leaves out what needs TLS" || ok

serve --tls require --psk "$PWD/keys.psk"
copy "keys" "$(psk disk keys.psk)"
fails "a wrong key" nbdinfo "$(psk disk wrong.psk)"
fails "clear text" nbdinfo "$(plain disk)"

serve
fails "TLS that is off" nbdinfo "$(x509 disk good)"
does "clear text that is on" nbdinfo "$(plain disk)"
stop
rm -rf broken && cp -r good broken && echo nonsense >broken/server-cert.pem
fails "a certificate that is none" "$NBD_BED" s2 --tls require --certs broken
fails "no folder" "$NBD_BED" s2 --tls require --certs /nowhere
fails "no keys" "$NBD_BED" s2 --tls require --psk /nowhere
fails "nothing" "$NBD_BED" s2 --tls require
echo "$passed passed, $failed failed"
exit $((failed != 0))
