package nl

// Change is one message that changes the kernel. It prints itself as the ip or
// bridge command that would do the same.
type Change interface {
	String() string
	isChange()
}
