//go:build cgo && linux

package main

const usesMalloc = true
