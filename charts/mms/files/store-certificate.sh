# Writes a self-signed certificate that nobody else has, and its key, into the folder given.
#
# The store's S3 gateway also listens for gRPC calls that can add users. With this certificate as their only authority
# no client from outside the pod is let in. The script runs in the store's own image: an upgrade of the operator must not
# restart the store, whose data may be lost with its pod.
set -eu
umask 077
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -noenc -sha256 -days 3650 -subj /CN=store \
  -addext basicConstraints=critical,CA:TRUE,pathlen:0 -keyout "$1/tls.key" -out "$1/tls.crt"
