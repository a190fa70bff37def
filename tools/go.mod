// The tools that work on this repository, apart from what the product is built on.
module postbook.dev/postbook/tools

go 1.26.0
