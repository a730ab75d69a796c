#!/bin/sh
# What the tests need beyond Python packages, from Debian, where this user may install it. Says so where it cannot.
set -u
missing=""
command -v go >/dev/null 2>&1 && [ -d /usr/share/gocode/src/golang.org/x/mod ] || missing="$missing golang-go golang-golang-x-mod-dev"
command -v chromium >/dev/null 2>&1 || missing="$missing chromium fonts-dejavu-core"
command -v pdftoppm >/dev/null 2>&1 || missing="$missing poppler-utils"
command -v openssl >/dev/null 2>&1 || missing="$missing openssl"
[ -z "$missing" ] && exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
  apt-get update -q >/dev/null && DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends $missing >/dev/null && exit 0
fi
echo "NOT INSTALLED:$missing (apt-get install$missing); the tests that need them say so" >&2
[ "${CI:-}" = true ] && exit 1
exit 0
