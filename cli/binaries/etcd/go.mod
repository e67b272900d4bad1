module gaggle.invalid/binaries/etcd

go 1.26.5
