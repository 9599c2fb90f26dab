package http1test

// lengths are about Content-Length. Its grammar is 1*DIGIT (RFC 9110, 8.6); what else is in use is read as a number by
// some, up to the first strange byte by others, and not at all by a third kind.
func lengths() []Case {
	refusedLength := func(name, value string) Case {
		return refused(name, 400, post("Content-Length: "+value+"\r\n", "hello"))
	}
	return []Case{
		passed("a plain length", post("Content-Length: 5\r\n", "hello"), "POST", "/first", "hello"),
		passed("a length of zero", post("Content-Length: 0\r\n", ""), "POST", "/first", ""),
		passed("a length with zeros before it", post("Content-Length: 005\r\n", "hello"), "POST", "/first", "hello").without("length: 005"),
		passed("a length with blanks around it", post("Content-Length: \t5 \t\r\n", "hello"), "POST", "/first", "hello"),
		passed("a length in another case", post("cOnTENT-lENGTH:5\r\n", "hello"), "POST", "/first", "hello"),
		passed("no length at all with POST", post("", ""), "POST", "/first", ""),
		passed("a GET with a body that is a request", request("GET /first HTTP/1.1", "Content-Length: 44\r\n", inner), "GET", "/first", inner),
		passed("a HEAD with a body", request("HEAD /first HTTP/1.1", "Content-Length: 5\r\n", "hello"), "HEAD", "/first", "hello"),
		passed("a DELETE with a body", request("DELETE /first HTTP/1.1", "Content-Length: 5\r\n", "GET /"), "DELETE", "/first", "GET /"),
		passed("an OPTIONS with a body", request("OPTIONS /first HTTP/1.1", "Content-Length: 5\r\n", "GET /"), "OPTIONS", "/first", "GET /"),
		refusedLength("a length with a plus", "+5"),
		refusedLength("a length with a minus", "-5"),
		refusedLength("a negative length of zero", "-0"),
		refusedLength("a hexadecimal length", "0x5"),
		refusedLength("a length with a fraction", "5.0"),
		refusedLength("a length with an exponent", "5e0"),
		refusedLength("a length with an underscore", "1_0"),
		refusedLength("a length in quotes", `"5"`),
		refusedLength("a length with text after it", "5 bytes"),
		refusedLength("a length with a semicolon", "5;"),
		refusedLength("a length with a blank within", "1 0"),
		refusedLength("a length with a comma", "5,"),
		refusedLength("a list of equal lengths", "5, 5"),
		refusedLength("a list of different lengths", "5, 50"),
		refusedLength("an empty length", ""),
		refusedLength("a length of blanks", " \t "),
		refusedLength("a length beyond 64 bits", "18446744073709551621"),
		refusedLength("a length beyond 32 bits and 63 bits", "9223372036854775813"),
		refusedLength("a length with very many zeros", many("0", 40)+"5"),
		refusedLength("a length with a vertical tab", "\x0b5"),
		refusedLength("a length with a form feed after it", "5\x0c"),
		refusedLength("a length with NUL after it", "5\x00"),
		refusedLength("a length with a non-breaking space", "\xa05"),
		refusedLength("a length in full-width digits", "\xef\xbc\x95"),
		refused("two equal lengths", 400, post("Content-Length: 5\r\nContent-Length: 5\r\n", "hello")),
		refused("two different lengths, the first longer", 400, post("Content-Length: 50\r\nContent-Length: 0\r\n", inner)),
		refused("two different lengths, the first shorter", 400, post("Content-Length: 0\r\nContent-Length: 50\r\n", inner)),
		refused("two lengths apart and in different cases", 400, post("content-length: 0\r\nX-A: b\r\nCONTENT-LENGTH: 50\r\n", inner)),
		refused("a length and a bad one", 400, post("Content-Length: 5\r\nContent-Length: x\r\n", "hello")),
		refused("a bad length beside a good one", 400, post("Content-Length: \r\nContent-Length: 5\r\n", "hello")),
		refused("a length with a blank before the colon", 400, post("Content-Length : 50\r\n", inner)),
		refused("a length with a tab before the colon", 400, post("Content-Length\t: 50\r\n", inner)),
		refused("a length with a blank before the name", 400, post(" Content-Length: 50\r\n", inner)),
		refused("a length on a folded line", 400, post("Content-Length:\r\n 50\r\n", inner)),
		refused("a length that is continued on the next line", 400, post("Content-Length: 5\r\n 0\r\n", inner)),
		refused("a length with an underscore for the dash", 400, post("Content_Length: 50\r\n", inner)),
		refused("a length with an underscore beside a real one", 400, post("Content-Length: 5\r\nContent_Length: 50\r\n", "hello")),
		refused("a length with NUL in its name", 400, post("Content-\x00Length: 50\r\n", inner)),
		refused("a length behind a lone CR", 400, post("X-A: b\rContent-Length: 50\r\n", inner)),
		refused("a length behind a lone LF", 400, post("X-A: b\nContent-Length: 50\r\n", inner)),
	}
}

// encodings are about Transfer-Encoding: ways to write "chunked" that some understand and some do not.
func encodings() []Case {
	const body = "5\r\nhello\r\n0\r\n\r\n"
	value := func(status int, name, value string) Case {
		return refused(name, status, post("Transfer-Encoding: "+value+"\r\n", body))
	}
	field := func(name, field string) Case {
		return refused(name, 400, post("Content-Length: 15\r\n"+field+"\r\n", body))
	}
	return []Case{
		passed("chunked", post("Transfer-Encoding: chunked\r\n", body), "POST", "/first", "hello"),
		passed("chunked in capitals", post("TRANSFER-ENCODING: CHUNKED\r\n", body), "POST", "/first", "hello"),
		passed("chunked without a blank before it", post("Transfer-Encoding:chunked\r\n", body), "POST", "/first", "hello"),
		passed("chunked with tabs around it", post("Transfer-Encoding:\tchunked\t\r\n", body), "POST", "/first", "hello"),
		passed("GET with a chunked body", request("GET /first HTTP/1.1", "Transfer-Encoding: chunked\r\n", body), "GET", "/first", "hello"),
		passed("Content-Encoding is no framing", post("Content-Encoding: chunked\r\nContent-Length: 5\r\n", "hello"), "POST", "/first", "hello"),
		passed("TE is no framing", post("TE: chunked\r\nContent-Length: 5\r\n", "hello"), "POST", "/first", "hello"),
		value(501, "a coding that begins with x", "xchunked"),
		value(501, "a coding that is cut", "chunke"),
		value(501, "chunked in quotes", `"chunked"`),
		value(501, "chunked in single quotes", `'chunked'`),
		value(501, "chunked with a parameter", "chunked;q=1"),
		value(501, "chunked with an empty parameter", "chunked;"),
		value(501, "chunked with a word after it", "chunked foo"),
		value(501, "chunked with a word before it", "foo chunked"),
		value(501, "chunked after a byte beyond ASCII", "\xffchunked"),
		value(501, "chunked before a non-breaking space", "chunked\xa0"),
		value(501, "identity", "identity"),
		value(501, "identity before chunked", "identity, chunked"),
		value(501, "gzip before chunked", "gzip, chunked"),
		value(501, "gzip", "gzip"),
		value(501, "a colon before chunked", ": chunked"),
		value(400, "chunked before identity", "chunked, identity"),
		value(400, "chunked before gzip", "chunked, gzip"),
		value(400, "chunked twice in a list", "chunked, chunked"),
		value(400, "chunked and a comma", "chunked,"),
		value(400, "a comma and chunked", ",chunked"),
		value(400, "an empty coding", ""),
		value(400, "a comma alone", ","),
		value(400, "chunked after a vertical tab", "\x0bchunked"),
		value(400, "chunked before a form feed", "chunked\x0c"),
		value(400, "chunked after NUL", "\x00chunked"),
		value(400, "chunked before a lone CR", "chunked\r"),
		value(400, "chunked on a folded line", "\r\n chunked"),
		value(501, "chunked continued on the next line", "chun\r\n ked"),
		value(400, "chunked after a lone LF and a blank", "\n chunked"),
		refused("two fields of chunked", 400, post("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", body)),
		refused("chunked, then identity in another field", 400, post("Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n", body)),
		refused("identity, then chunked in another field", 501, post("Transfer-Encoding: identity\r\nTransfer-Encoding: chunked\r\n", body)),
		refused("chunked, then an empty field", 400, post("Transfer-Encoding: chunked\r\nTransfer-Encoding:\r\n", body)),
		refused("chunked in HTTP/1.0", 400, request("POST /first HTTP/1.0", "Transfer-Encoding: chunked\r\n", body)),
		refused("chunked in HTTP/1.0 that is kept alive", 400, request("POST /first HTTP/1.0", "Connection: keep-alive\r\nTransfer-Encoding: chunked\r\n", body)),
		field("a blank before the colon of Transfer-Encoding", "Transfer-Encoding : chunked"),
		field("a tab before the colon of Transfer-Encoding", "Transfer-Encoding\t: chunked"),
		field("a vertical tab before the colon of Transfer-Encoding", "Transfer-Encoding\x0b: chunked"),
		field("a blank before Transfer-Encoding", " Transfer-Encoding: chunked"),
		field("a tab before Transfer-Encoding", "\tTransfer-Encoding: chunked"),
		field("Transfer-Encoding without a colon", "Transfer-Encoding chunked"),
		field("Transfer-Encoding and an equals sign", "Transfer-Encoding=chunked"),
		field("a semicolon in the name", "Transfer-Encoding;: chunked"),
		field("an underscore for the dash", "Transfer_Encoding: chunked"),
		field("a byte beyond ASCII before the name", "\xefTransfer-Encoding: chunked"),
		field("a dotless i in the name", "Transfer-Encod\u0131ng: chunked"),
		field("NUL in the name", "Transfer\x00-Encoding: chunked"),
		field("a lone CR before the name", "\rTransfer-Encoding: chunked"),
		field("a lone CR in the line before", "X-A: b\rTransfer-Encoding: chunked"),
		field("a lone LF in the line before", "X-A: b\nTransfer-Encoding: chunked"),
		field("LF and CR the wrong way round", "X-A: b\n\rTransfer-Encoding: chunked"),
		field("a folded line that reads as Transfer-Encoding", "X-A: b\r\n Transfer-Encoding: chunked"),
	}
}

// both are about a length beside chunked. RFC 9112, 6.1 lets a server read it as chunked or refuse; who is behind it may
// do as the length says.
func both() []Case {
	chunked := "Transfer-Encoding: chunked\r\n"
	return []Case{
		refused("CL.TE: the length covers the smuggled request", 400, post("Content-Length: 49\r\n"+chunked, "0\r\n\r\n"+inner)),
		refused("TE.CL: the chunk covers the smuggled request", 400, post(chunked+"Content-Length: 4\r\n", "2c\r\n"+inner+"\r\n0\r\n\r\n")),
		refused("both, and they agree", 400, post("Content-Length: 5\r\n"+chunked, "0\r\n\r\n")),
		refused("a length of zero beside chunked", 400, post("Content-Length: 0\r\n"+chunked, "0\r\n\r\n")),
		refused("TE.TE: a second coding that is unknown", 400, post("Content-Length: 5\r\n"+chunked+"Transfer-Encoding: x\r\n", "0\r\n\r\n")),
		refused("TE.TE: a first coding that is unknown", 501, post("Content-Length: 5\r\nTransfer-Encoding: x\r\n"+chunked, "0\r\n\r\n")),
		refused("both with GET", 400, request("GET /first HTTP/1.1", "Content-Length: 5\r\n"+chunked, "0\r\n\r\n")),
		refused("both in HTTP/1.0", 400, request("POST /first HTTP/1.0", "Content-Length: 5\r\n"+chunked, "0\r\n\r\n")),
		refused("both, and Connection names one", 400, post("Connection: close, Content-Length\r\nContent-Length: 5\r\n"+chunked, "0\r\n\r\n")),
		refused("both, with 100-continue", 400, post("Expect: 100-continue\r\nContent-Length: 5\r\n"+chunked, "0\r\n\r\n")),
	}
}

// chunks are about chunked bodies (RFC 9112, 7.1).
func chunks() []Case {
	chunked := func(body string) string { return post("Transfer-Encoding: chunked\r\n", body) }
	bad := func(name, body string) Case { return refused(name, 400, chunked(body)) }
	good := func(name, body, data string) Case { return passed(name, chunked(body), "POST", "/first", data) }
	return []Case{
		good("no data", "0\r\n\r\n", ""),
		good("two chunks", "5\r\nhello\r\n1\r\n!\r\n0\r\n\r\n", "hello!"),
		good("zeros before a size", "0005\r\nhello\r\n000\r\n\r\n", "hello"),
		good("sizes in both cases", "a\r\n0123456789\r\nA\r\n0123456789\r\n0\r\n\r\n", "01234567890123456789"),
		good("an extension", "5;name=value\r\nhello\r\n0\r\n\r\n", "hello"),
		good("an extension in quotes", "5;name=\"a;b\"\r\nhello\r\n0;x\r\n\r\n", "hello"),
		good("blanks after a size", "5  \r\nhello\r\n0\r\n\r\n", "hello"),
		good("data that looks like a last chunk", "5\r\n0\r\n\r\n\r\n0\r\n\r\n", "0\r\n\r\n"),
		bad("a size with a plus", "+5\r\nhello\r\n0\r\n\r\n"),
		bad("a size with a minus", "-5\r\nhello\r\n0\r\n\r\n"),
		bad("a size with 0x", "0x5\r\nhello\r\n0\r\n\r\n"),
		bad("a size with a blank before it", " 5\r\nhello\r\n0\r\n\r\n"),
		bad("a size with a tab before it", "\t5\r\nhello\r\n0\r\n\r\n"),
		bad("a size with an underscore", "1_0\r\n0123456789abcdef\r\n0\r\n\r\n"),
		bad("a size with a comma", "5,5\r\nhello\r\n0\r\n\r\n"),
		bad("a size with text after a blank", "5 x\r\nhello\r\n0\r\n\r\n"),
		bad("a size with NUL", "5\x00\r\nhello\r\n0\r\n\r\n"),
		bad("no size", "\r\nhello\r\n0\r\n\r\n"),
		bad("an extension without a size", ";a=b\r\nhello\r\n0\r\n\r\n"),
		bad("a size beyond 64 bits", "10000000000000005\r\nhello\r\n0\r\n\r\n"),
		bad("a size that is negative in 64 bits", "fffffffffffffffb\r\nhello\r\n0\r\n\r\n"),
		bad("a size with very many zeros", many("0", 30)+"5\r\nhello\r\n0\r\n\r\n"),
		bad("LF alone after a size", "5\nhello\r\n0\r\n\r\n"),
		bad("CR alone after a size", "5\rhello\r\n0\r\n\r\n"),
		bad("LF alone in an extension", "5;a\nhello\r\n0\r\n\r\n"),
		bad("LF alone in an extension, before another line", "2;\nxx\r\n2e\r\n0\r\n\r\n"+inner),
		bad("CR alone in an extension", "5;a\rb\r\nhello\r\n0\r\n\r\n"),
		bad("NUL in an extension", "5;a\x00b\r\nhello\r\n0\r\n\r\n"),
		bad("an extension of 8 KiB", "5;"+many("a", 8<<10)+"\r\nhello\r\n0\r\n\r\n"),
		bad("data longer than its size", "5\r\nhello!\r\n0\r\n\r\n"),
		bad("data shorter than its size", "6\r\nhello\r\n0\r\n\r\n"),
		bad("LF alone after data", "5\r\nhello\n0\r\n\r\n"),
		bad("CR alone after data", "5\r\nhello\r0\r\n\r\n"),
		bad("nothing after data", "5\r\nhello0\r\n\r\n"),
		bad("two bytes of another kind after data", "5\r\nhelloXX0\r\n\r\n"),
		bad("LF alone after the last chunk", "5\r\nhello\r\n0\n\r\n"),
		bad("LF alone at the end", "5\r\nhello\r\n0\r\n\n"),
		bad("CR alone at the end", "5\r\nhello\r\n0\r\n\rX"),
		bad("a request where the trailer is", "0\r\n"+inner),
	}
}

// trailers are about what follows the last chunk. A field in it that a recipient adds to the header must not be about
// framing or routing (RFC 9110, 6.5.1).
func trailers() []Case {
	trailer := func(fields string) string {
		return post("Transfer-Encoding: chunked\r\n", "5\r\nhello\r\n0\r\n"+fields+"\r\n")
	}
	bad := func(name, fields string) Case { return refused(name, 400, trailer(fields)) }
	return []Case{
		passed("a trailer", trailer("X-A: b\r\n"), "POST", "/first", "hello"),
		passed("a trailer with a length", trailer("Content-Length: 50\r\n"), "POST", "/first", "hello").without("content-length: 50"),
		passed("a trailer with a host", trailer("Host: evil.test\r\n"), "POST", "/first", "hello").without("evil"),
		passed("a trailer with a coding", trailer("Transfer-Encoding: identity\r\n"), "POST", "/first", "hello").without("identity"),
		passed("a trailer with where the request is from", trailer("X-Forwarded-For: 192.0.2.1\r\n"), "POST", "/first", "hello").without("192.0.2.1"),
		bad("a trailer line without a colon", "X-A\r\n"),
		bad("a trailer line without a name", ": b\r\n"),
		bad("a trailer line with a blank before the colon", "X-A : b\r\n"),
		bad("a folded trailer line", "X-A: b\r\n c\r\n"),
		bad("a trailer line that begins with a blank", " X-A: b\r\n"),
		bad("a trailer line that ends with LF alone", "X-A: b\nX-C: d\r\n"),
		bad("a trailer value with NUL", "X-A: b\x00\r\n"),
		bad("a trailer value with a lone CR", "X-A: b\rContent-Length: 5\r\n"),
		refused("a trailer of 100 KiB", 431, trailer("X-A: "+many("b", 100<<10)+"\r\n")),
	}
}
