package http1

// A request of another version of HTTP that is passed on in this one must be no other there.

// CheckTarget returns what is wrong with a request's target, or nil, as Parse would.
func CheckTarget(method, target string) *Error {
	r := Request{Method: []byte(method), Target: []byte(target)}
	if len(target) == 0 {
		return refuse(400, "The request has no target; send a path.")
	}
	if i := endOfTarget(r.Target, 0); i < len(target) {
		return refuse(400, "The target %q has the byte %#02x; percent-encode it.", cut(r.Target), target[i])
	}
	_, err := r.readTarget()
	return err
}

// CheckName returns what is wrong with the name of a field, which is a token, or nil, as Parse would.
func CheckName(name string) *Error {
	for i := range len(name) {
		if name[i] == '_' {
			return checkUnderscores([]byte(name))
		}
	}
	return nil
}
