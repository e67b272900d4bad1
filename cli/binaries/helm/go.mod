module gaggle.invalid/binaries/helm

go 1.26.5
