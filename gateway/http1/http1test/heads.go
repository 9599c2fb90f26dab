package http1test

// lines are about the lines of a header.
func lines() []Case {
	bad := func(name, fields string) Case { return refused(name, 400, get(fields)) }
	return []Case{
		passed("values with bytes beyond ASCII", get("X-A: gr\xc3\xbc\xc3\x9fe\r\n"), "GET", "/first", ""),
		passed("names of all characters that are allowed", get("!#$%&'*+-.^_`|~09azAZ: b\r\n"), "GET", "/first", ""),
		passed("a field twice", get("X-A: b\r\nX-A: c\r\n"), "GET", "/first", ""),
		passed("an empty value", get("X-A:\r\nX-B: \r\n"), "GET", "/first", ""),
		passed("a value with a colon", get("X-A: b: c\r\n"), "GET", "/first", ""),
		passed("a value that looks like an escaped line end", get("X-A: b%0d%0aContent-Length: 50\r\n"), "GET", "/first", ""),
		passed("names that are like one of framing", get("Content-Lengt: 50\r\nContent-Length2: 50\r\nX-Transfer-Encoding: chunked\r\n"), "GET", "/first", ""),
		refused("LF alone everywhere", 400, "GET /first HTTP/1.1\nHost: hello.test\n\n"),
		refused("LF alone after the request line", 400, "GET /first HTTP/1.1\nHost: hello.test\r\n\r\n"),
		refused("LF alone as the empty line", 400, "GET /first HTTP/1.1\r\nHost: hello.test\r\n\n"),
		refused("LF alone after the last field", 400, "GET /first HTTP/1.1\r\nHost: hello.test\n\r\n"),
		refused("CR alone as the empty line", 400, "GET /first HTTP/1.1\r\nHost: hello.test\r\n\rX: y\r\n\r\n"),
		refused("two CR before LF", 400, "GET /first HTTP/1.1\r\nHost: hello.test\r\r\n\r\n"),
		bad("two CR before the LF of the empty line", "X-A: b\r\n\r\r\n"),
		bad("a folded line", "X-A: b\r\n c\r\n"),
		bad("a line folded with a tab", "X-A: b\r\n\tc\r\n"),
		bad("a folded line that is blank", "X-A: b\r\n \r\n"),
		bad("a folded line that looks like a field", "X-A: b\r\n Content-Length: 50\r\n"),
		bad("a blank before the colon", "X-A : b\r\n"),
		bad("a blank within a name", "X A: b\r\n"),
		bad("no name", ": b\r\n"),
		bad("no colon", "X-A\r\n"),
		bad("a line of blanks", "   \r\n"),
		bad("NUL in a name", "X\x00A: b\r\n"),
		bad("NUL in a value", "X-A: b\x00c\r\n"),
		bad("CR alone in a value", "X-A: b\rc\r\n"),
		bad("CR alone at the begin of a value", "X-A: \rb\r\n"),
		bad("a backspace in a value", "X-A: b\x08c\r\n"),
		bad("an escape in a value", "X-A: b\x1bc\r\n"),
		bad("DEL in a value", "X-A: b\x7fc\r\n"),
		bad("DEL in a name", "X\x7fA: b\r\n"),
		bad("a byte beyond ASCII in a name", "X-\xc3\xbc: b\r\n"),
		bad("parentheses in a name", "X(A): b\r\n"),
		bad("a slash in a name", "X/A: b\r\n"),
		bad("quotes in a name", "\"X\": b\r\n"),
		bad("the first line of a request among the fields", "GET /smuggled HTTP/1.1\r\n"),
		bad("a forwarded address with underscores", "X_Forwarded_For: 192.0.2.1\r\n"),
		refused("a blank before the first field", 400, "GET /first HTTP/1.1\r\n Host: hello.test\r\n\r\n"),
		refused("a blank line of blanks before the fields", 400, "GET /first HTTP/1.1\r\n \r\nHost: hello.test\r\n\r\n"),
		refused("too many fields", 431, get(many("X-A: b\r\n", 2000))),
		refused("too long a field", 431, get("X-A: "+many("b", 100<<10)+"\r\n")),
	}
}

// requestLines are about the first line.
func requestLines() []Case {
	bad := func(name, line string) Case { return refused(name, 400, request(line, "", "")) }
	return []Case{
		passed("an empty line before the request", "\r\n"+get(""), "GET", "/first", ""),
		passed("a method of ours", request("PURGE /first HTTP/1.1", "", ""), "PURGE", "/first", ""),
		passed("a method in lower case is another method", request("get /first HTTP/1.1", "", ""), "get", "/first", ""),
		passed("a newer HTTP/1", request("GET /first HTTP/1.9", "", ""), "GET", "/first", ""),
		passed("an old HTTP/1", request("GET /first HTTP/1.0", "", ""), "GET", "/first", "").closing(),
		passed("bytes beyond ASCII in the target", request("GET /\xc3\xbc HTTP/1.1", "", ""), "GET", "/\xc3\xbc", ""),
		passed("an escaped line end in the target", request("GET /a%0d%0aX:%20b HTTP/1.1", "", ""), "GET", "/a%0d%0aX:%20b", ""),
		passed("a path that leaves its root", request("GET /../../first HTTP/1.1", "", ""), "GET", "/../../first", ""),
		passed("a path of two slashes", request("GET //evil.test/first HTTP/1.1", "", ""), "GET", "//evil.test/first", ""),
		passed("a backslash", request("GET /a\\b HTTP/1.1", "", ""), "GET", "/a\\b", ""),
		passed("strange escapes in the query", request("GET /first?%zz%&a=%0g HTTP/1.1", "", ""), "GET", "/first?%zz%&a=%0g", ""),
		bad("no version", "GET /first"),
		bad("no target", "GET HTTP/1.1"),
		bad("no target but two spaces", "GET  HTTP/1.1"),
		bad("two spaces before the target", "GET  /first HTTP/1.1"),
		bad("two spaces before the version", "GET /first  HTTP/1.1"),
		bad("a space after the version", "GET /first HTTP/1.1 "),
		bad("a tab for a space", "GET\t/first HTTP/1.1"),
		bad("a tab before the version", "GET /first\tHTTP/1.1"),
		bad("a vertical tab for a space", "GET\x0b/first HTTP/1.1"),
		bad("a space before the method", " GET /first HTTP/1.1"),
		bad("a space in the target", "GET /first second HTTP/1.1"),
		bad("a version twice", "GET /first HTTP/1.1 HTTP/1.1"),
		bad("NUL in the target", "GET /fi\x00rst HTTP/1.1"),
		bad("CR in the target", "GET /fi\rrst HTTP/1.1"),
		bad("LF in the target", "GET /first HTTP/1.1\nX: /second HTTP/1.1"),
		bad("DEL in the target", "GET /fi\x7frst HTTP/1.1"),
		bad("a fragment", "GET /first#second HTTP/1.1"),
		bad("a bad escape", "GET /first%zz HTTP/1.1"),
		bad("an escape that is cut", "GET /first%4 HTTP/1.1"),
		bad("a method with a colon", "GET: /first HTTP/1.1"),
		bad("a method with a control character", "GE\x01T /first HTTP/1.1"),
		bad("a method in quotes", "\"GET\" /first HTTP/1.1"),
		bad("a version in lower case", "GET /first http/1.1"),
		bad("a version without a minor part", "GET /first HTTP/1"),
		bad("a version with two digits", "GET /first HTTP/1.10"),
		bad("a version with zeros", "GET /first HTTP/01.1"),
		bad("a version with a plus", "GET /first HTTP/+1.1"),
		bad("a version with a comma", "GET /first HTTP/1,1"),
		bad("another protocol", "GET /first ICE/1.0"),
		refused("HTTP/2 by name alone", 505, request("GET /first HTTP/2.0", "", "")),
		refused("HTTP/3 by name alone", 505, request("GET /first HTTP/3.0", "", "")),
		refused("HTTP/0.9 by name", 505, request("GET /first HTTP/0.9", "", "")),
		refused("LF alone before the request", 400, "\n"+get("")),
		refused("a blank line of blanks before the request", 400, " \r\n"+get("")),
		refused("a target of 100 KiB", 414, request("GET /"+many("a", 100<<10)+" HTTP/1.1", "", "")),
		refused("the server's own target for another method than OPTIONS", 400, request("GET * HTTP/1.1", "", "")),
		passed("the server's own target", request("OPTIONS * HTTP/1.1", "", ""), "OPTIONS", "*", ""),
	}
}

// hosts are about who the request is for: the gateway and what is behind it must come to the same.
func hosts() []Case {
	host := func(name, value string) Case {
		return refused(name, 400, "GET /first HTTP/1.1\r\nHost: "+value+"\r\n\r\n")
	}
	target := func(status int, name, target, host string) Case {
		return refused(name, status, "GET "+target+" HTTP/1.1\r\nHost: "+host+"\r\n\r\n")
	}
	absolute := func(name, target, host, path string) Case {
		return passed(name, "GET "+target+" HTTP/1.1\r\nHost: "+host+"\r\n\r\n", "GET", path, "")
	}
	return []Case{
		absolute("a URL for a target", "http://hello.test/first", "hello.test", "/first"),
		absolute("a URL without a path", "http://hello.test", "hello.test", "/"),
		absolute("a URL with a query and no path", "http://hello.test?first", "hello.test", "/?first"),
		absolute("a URL in other cases", "HTTP://Hello.Test:80/first", "hello.TEST:80", "/first"),
		absolute("a URL within a path", "/http://evil.test/", "hello.test", "/http://evil.test/"),
		passed("a host with a port", "GET /first HTTP/1.1\r\nHost: hello.test:8080\r\n\r\n", "GET", "/first", ""),
		refused("no host", 400, "GET /first HTTP/1.1\r\n\r\n"),
		refused("two equal hosts", 400, get("Host: hello.test\r\n")),
		refused("two hosts", 400, get("Host: evil.test\r\n")),
		refused("two hosts, the other first", 400, "GET /first HTTP/1.1\r\nHost: evil.test\r\nX-A: b\r\nhost: hello.test\r\n\r\n"),
		refused("a second host on a folded line", 400, get(" Host: evil.test\r\n")),
		refused("a second host with a blank before the colon", 400, get("Host : evil.test\r\n")),
		refused("a second, empty host", 400, get("Host:\r\n")),
		host("an empty host", ""),
		host("a list of hosts", "hello.test, evil.test"),
		host("a list of hosts without a blank", "hello.test,evil.test"),
		host("two hosts with a blank", "hello.test evil.test"),
		host("a user before the host", "evil.test@hello.test"),
		host("a user and a password before the host", "a:b@hello.test"),
		host("a path after the host", "hello.test/evil"),
		host("a query after the host", "hello.test?evil"),
		host("a fragment after the host", "hello.test#evil"),
		host("a URL for a host", "http://hello.test"),
		host("a backslash in the host", "hello.test\\evil"),
		host("an escape in the host", "hello%2etest"),
		host("quotes around the host", "\"hello.test\""),
		host("bytes beyond ASCII in the host", "h\xc3\xa9llo.test"),
		host("NUL in the host", "hello.test\x00.evil.test"),
		host("a tab in the host", "hello.test\tevil.test"),
		host("a port that is none", "hello.test:80evil"),
		host("a port with a plus", "hello.test:+80"),
		host("two ports", "hello.test:80:81"),
		host("a port alone", ":80"),
		host("a port that is too long", "hello.test:0000000000080"),
		host("a bracket that is not closed", "[::1"),
		host("an address that is none", "[::zz]"),
		host("text after an address", "[::1]evil"),
		host("an address without brackets", "::1"),
		target(400, "a URL of another host", "http://hello.test/first", "evil.test"),
		target(400, "a URL of another port", "http://hello.test:80/first", "hello.test:81"),
		target(400, "a URL with a user", "http://evil.test@hello.test/first", "hello.test"),
		target(400, "a URL with a user and its host field", "http://a:b@hello.test/first", "a:b@hello.test"),
		target(400, "a URL without a host", "http:///first", "hello.test"),
		target(400, "a URL of a host with an escape", "http://hello%2etest/first", "hello.test"),
		target(400, "a URL of another scheme", "ftp://hello.test/first", "hello.test"),
		target(400, "a URL with a backslash for the host's end", "http://hello.test\\@evil.test/first", "hello.test"),
		target(400, "a file for a target", "file:///etc/passwd", "hello.test"),
		target(400, "a scheme without slashes", "http:hello.test/first", "hello.test"),
		target(400, "a name for a target", "first", "hello.test"),
		target(400, "a host for a target", "hello.test:80", "hello.test"),
		target(400, "a query for a target", "?first", "hello.test"),
		target(400, "an at sign before a host for a target", "@evil.test/first", "hello.test"),
		refused("a URL and no host field", 400, "GET http://hello.test/first HTTP/1.1\r\n\r\n"),
		refused("CONNECT", 405, "CONNECT hello.test:443 HTTP/1.1\r\nHost: hello.test\r\n\r\n"+inner),
		refused("CONNECT with a path", 400, "CONNECT /first HTTP/1.1\r\nHost: hello.test\r\n\r\n"),
		refused("CONNECT with a URL", 400, "CONNECT http://hello.test/ HTTP/1.1\r\nHost: hello.test\r\n\r\n"),
	}
}

// connections are about fields that change what others mean.
func connections() []Case {
	websocket := "Upgrade: websocket\r\nConnection: Upgrade\r\n"
	return []Case{
		passed("Connection names Content-Length", post("Connection: Content-Length\r\nContent-Length: 5\r\n", "hello"), "POST", "/first", "hello"),
		passed("Connection names Transfer-Encoding", post("Connection: transfer-encoding\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n"), "POST", "/first", ""),
		passed("Connection names Host", get("Connection: Host\r\n"), "GET", "/first", ""),
		passed("Connection names a field", get("Connection: x-a\r\nX-A: secret\r\n"), "GET", "/first", "").without("secret", "x-a"),
		passed("Connection names a field before it", get("X-A: secret\r\nConnection: keep-alive,X-a\r\n"), "GET", "/first", "").without("secret", "x-a"),
		passed("two Connection fields", get("Connection: x-a\r\nX-A: secret\r\nX-B: secret\r\nConnection: x-b\r\n"), "GET", "/first", "").without("secret"),
		passed("Connection: close", get("Connection: close\r\n"), "GET", "/first", "").closing().without("close"),
		passed("Keep-Alive and Proxy-Connection", get("Keep-Alive: timeout=secret\r\nProxy-Connection: secret\r\n"), "GET", "/first", "").without("secret"),
		passed("TE that is not for the instance", get("TE: secret;q=0.5\r\nConnection: TE\r\n"), "GET", "/first", "").without("secret"),
		passed("an upgrade that Connection does not name", get("Upgrade: websocket\r\n"), "GET", "/first", "").without("websocket"),
		passed("an upgrade with a body", post(websocket+"Content-Length: 5\r\n", "hello"), "POST", "/first", "hello").without("websocket"),
		passed("an upgrade in HTTP/1.0", request("GET /first HTTP/1.0", websocket, ""), "GET", "/first", "").closing().without("websocket"),
		passed("100-continue with a length", post("Expect: 100-continue\r\nContent-Length: 5\r\n", "hello"), "POST", "/first", "hello"),
		passed("100-continue with chunks", post("Expect: 100-Continue\r\nTransfer-Encoding: chunked\r\n", "5\r\nhello\r\n0\r\n\r\n"), "POST", "/first", "hello"),
		passed("100-continue without a body", get("Expect: 100-continue\r\n"), "GET", "/first", "").without("100-continue"),
		refused("100-continue after a word", 417, post("Expect: y 100-continue\r\nContent-Length: 5\r\n", "hello")),
		refused("another expectation", 417, post("Expect: 200-ok\r\nContent-Length: 5\r\n", "hello")),
		refused("Expect on a folded line", 417, post("Expect:\r\n 100-continue\r\nContent-Length: 5\r\n", "hello")),
		refused("Connection names very many fields", 400, get("Connection: "+many("a,", 1000)+"\r\n")),
	}
}

// sequences are of more than one request on a connection.
func sequences() []Case {
	two := func(name, first, second, body string) Case {
		c := passed(name, first+second, "POST", "/first", body)
		c.Forwarded = append(c.Forwarded, Request{"GET", "/smuggled", ""})
		return c
	}
	after := func(name string, status int, second string) Case {
		c := passed(name, get("")+second, "GET", "/first", "")
		c.Refused = status
		return c
	}
	return []Case{
		two("a request after a length", post("Content-Length: 5\r\n", "hello"), inner, "hello"),
		two("a request after a length of zero", post("Content-Length: 0\r\n", ""), inner, ""),
		two("a request after no length", post("", ""), inner, ""),
		two("a request after chunks", post("Transfer-Encoding: chunked\r\n", "5\r\nhello\r\n0\r\n\r\n"), inner, "hello"),
		two("a request after a trailer", post("Transfer-Encoding: chunked\r\n", "0\r\nX-A: b\r\n\r\n"), inner, ""),
		two("a request after an empty line that belongs to nobody", post("Content-Length: 5\r\n", "hello"), "\r\n"+inner, "hello"),
		passed("a request after one that closes", get("Connection: close\r\n")+inner, "GET", "/first", "").closing(),
		passed("a request after HTTP/1.0", request("GET /first HTTP/1.0", "", "")+inner, "GET", "/first", "").closing(),
		after("rubbish after a request", 400, "hello\r\n\r\n"),
		after("a second request with two lengths", 400, post("Content-Length: 0\r\nContent-Length: 50\r\n", inner)),
		after("a second request with both framings", 400, post("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n")),
		after("a second request with a lone LF", 400, "GET /smuggled HTTP/1.1\nHost: hello.test\n\n"),
		after("a second request of another version", 505, request("GET /smuggled HTTP/2.0", "", "")),
		after("a body that nobody announced", 400, "a=b&c=d\r\n\r\n"),
		after("HTTP/2's preface after a request", 505, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
	}
}
