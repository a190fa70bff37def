package delivery

import (
	"strings"
	"testing"
	"unicode/utf8"
)

func TestPlainText(t *testing.T) {
	for _, tt := range []struct{ name, html, want string }{
		{"nothing", "", ""},
		{"text", "Hello", "Hello"},
		{"white space", " a\r\n\t b&nbsp;\u2003c ", "a b c"},
		{"blank between tags", "<b>a</b> <i>b</i>c", "a bc"},
		{"entities", "a &lt;b&gt; &amp; &#8364; &copy; &unknown; &", "a <b> & € © &unknown; &"},
		{"paragraphs", "<p>a</p><p>b</p>\n<p>c", "a\n\nb\n\nc"},
		{"lines", "a<br>b<br/>c<div>d</div><div>e</div>", "a\nb\nc\nd\ne"},
		{"no more than one empty line", "a<br><br><br><p></p><h1>b</h1>", "a\n\nb"},
		{"list", "Have:<ul><li>a</li><li>b<li>c</ul>end", "Have:\n\n- a\n- b\n- c\n\nend"},
		{"list of paragraphs", "<ul><li><p>a</p></li><li></li><li><div>b</div></li></ul>", "- a\n\n-\n- b"},
		{"table", "<table><tr><td>Sum</td><td>5</td></tr><tr><td>Tax</td><td>1</td></tr></table>", "Sum 5\nTax 1"},
		{"preformatted", "x<pre>a  b\n  <b>c</b>d\n\n\n\te</pre> y  z", "x\n\na  b\n  cd\n\n\te\n\ny z"},
		{"link", `See <a href="https://postbook.dev/?a=1&amp;b=2">our <b>site</b></a>, please`, "See our site <https://postbook.dev/?a=1&b=2>, please"},
		{"link that is its own text", `<a href="https://postbook.dev"> https://postbook.dev </a> <a href="mailto:a@b.example">a@b.example</a>`, "https://postbook.dev a@b.example"},
		{"link around an image", `<a href="https://postbook.dev"><img src=x alt="Postbook"></a>`, "Postbook <https://postbook.dev>"},
		{"link without text", `a<a href="https://postbook.dev"></a>`, "a <https://postbook.dev>"},
		{"links that lead nowhere", `<a href="#top">a</a> <a href="javascript:alert(1)">b</a> <a>c</a> <a name=x>d</a>`, "a b c d"},
		{"end of a link that was not begun", "x</a>y", "xy"},
		{"links that were not ended", `<a href="tel:1">b<a href="tel:2">c`, "b <tel:1>c <tel:2>"},
		{"what is not for readers", "<title>t</title><style>s{}</style>x<script>if (a<b) c()</script>y<!-- no -->z", "xyz"},
		{"script that was not ended", "x<script>y", "x"},
		{"broken tags", "a < b <> <1 </ <b c", "a < b <> <1"},
		{"not UTF-8", "a\xffb", "a\uFFFDb"},
		{"document", "<!DOCTYPE html>\n<html>\n <head><title>Receipt</title></head>\n <body>\n  <h1>Thank you</h1>\n  <p>Your order\n  is paid.</p>\n </body>\n</html>\n", "Thank you\n\nYour order is paid."},
	} {
		if got := PlainText(tt.html); got != tt.want {
			t.Errorf("%s: %q says %q, want %q", tt.name, tt.html, got, tt.want)
		}
	}
}

func FuzzPlainText(f *testing.F) {
	f.Add(`<p>Hi <a href="https://postbook.dev">you</a><pre> a
b</pre><li>&amp;<script>x</script>`)
	f.Fuzz(func(t *testing.T, body string) {
		got := PlainText(body)
		if !utf8.ValidString(got) {
			t.Errorf("%q says %q, which is not UTF-8", body, got)
		}
		if len(got) > 3*len(body) {
			t.Errorf("%d bytes became %d", len(body), len(got))
		}
		if strings.Contains(got, "\n\n\n") && !strings.Contains(body, "<pre") {
			t.Errorf("%q says %q: empty lines pile up", body, got)
		}
	})
}

// BenchmarkPlainText shows that what is hostile costs what is ordinary costs: a MB/s that
// does not fall with the length.
func BenchmarkPlainText(b *testing.B) {
	for _, part := range []string{"<p>Your order is paid.</p>", `<a href="http:x">`, "<", "&", "<li>", "<pre>\n", "</a>", "<a href="} {
		for _, size := range []int{64 << 10, 1 << 20} {
			body := strings.Repeat(part, size/len(part))
			b.Run(part+"/"+map[bool]string{true: "1M", false: "64k"}[size == 1<<20], func(b *testing.B) {
				b.SetBytes(int64(len(body)))
				for b.Loop() {
					PlainText(body)
				}
			})
		}
	}
}
