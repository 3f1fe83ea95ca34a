# Makes the buckets that are missing. If that cannot be done, the kubelet starts the container again.
weed_shell() { echo "$1" | timeout 5 weed shell -master=127.0.0.1:9333 -filer=127.0.0.1:8888; }
for attempt in $(seq 20); do
  missing=0
  buckets=$(weed_shell s3.bucket.list) || missing=1
  for bucket in mms corpora; do
    if ! echo "$buckets" | grep -q "^ *$bucket[[:space:]]"; then
      missing=1
      weed_shell "s3.bucket.create -name $bucket" || true
    fi
  done
  if [ "$missing" = 0 ]; then exit 0; fi
  sleep 1
done
echo "the buckets mms and corpora could not be made"
exit 1
