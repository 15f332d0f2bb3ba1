package result

// Command is a text with placeholders, in which they are replaced as in proofs and cures.
func Command(text string, v Values) string { return v.fill(text) }
