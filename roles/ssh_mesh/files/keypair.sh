#!/bin/sh
# The cluster key: prints its public half, as "TYPE KEY". Makes the key where it is missing, damaged or of another type, and with
# "rotate"; a line "created" precedes then. With "show" nothing is made, and of a key that cannot be used nothing is printed.
# Usage: sh -s KEY COMMENT keep|rotate|show <keypair.sh
set -eu
key=$1 comment=$2 what=$3

# Of a key with a passphrase, which no rank could type, ssh-keygen prints nothing either.
public_half() {
    ssh-keygen -y -P '' -f "$key" 2>/dev/null </dev/null | sed -n 's/^\(ssh-ed25519 [^ ]*\).*/\1/p'
}

if [ "$what" != show ]; then
    umask 077
    [ ! -f "$key" ] || chmod 0600 "$key" # ssh refuses a key that others may read
    if [ "$what" = rotate ] || [ -z "$(public_half)" ]; then
        rm -f "$key.new" "$key.new.pub"
        ssh-keygen -q -t ed25519 -N '' -C "$comment" -f "$key.new"
        mv "$key.new.pub" "$key.pub"
        mv "$key.new" "$key"
        echo created
    fi
fi
public_half
