package prober

// What plans of the product don't ask for, tests do.
var (
	Value   = value[int]
	Input   = input
	Output  = output
	Scratch = scratch
	InOut   = inOut
)

// Call is any system call.
func Call(name string, number uintptr, arguments ...Argument) Step {
	return Step{Name: name, number: number, arguments: arguments}
}

// With appends an argument.
func (s Step) With(argument Argument) Step {
	s.arguments = append(s.arguments, argument)
	return s
}
