module gaggle.invalid/binaries/keda

go 1.26.5
