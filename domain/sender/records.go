package sender

import "strings"

// Expected is what the platform asks of every domain.
type Expected struct {
	SPF string // the policy, "v=spf1 include:spf.mail.example ~all"
	MX  string // the host that takes bounces, "feedback.mail.example"
}

// Published is what of a domain goes into its DNS records.
type Published struct {
	Name       string
	ReturnPath string
	Selector   string
	PublicKey  string
}

// Record is one DNS record that a customer is asked to publish.
type Record struct {
	Check    string // RecordDKIM, RecordSPF, RecordMX or RecordDMARC
	Record   string // what the contract calls it: the MX of the return path is part of SPF
	Name     string // relative to the registered domain's zone
	FullName string
	Type     string
	Value    string
	Priority int
	Advice   bool // good to have, and not needed for sending
}

// Records lists the DNS records of a domain.
func Records(of Published, expected Expected) []Record {
	relative := func(label string) string {
		// The zone is taken to be the last two labels, as the contract shows it:
		// "send.news" for news.example.com.
		labels := strings.Split(of.Name, ".")
		if len(labels) <= 2 {
			return label
		}
		return label + "." + strings.Join(labels[:len(labels)-2], ".")
	}
	dkim, dmarc := of.Selector+"._domainkey", "_dmarc"
	return []Record{
		{Check: RecordMX, Record: RecordSPF, Name: relative(of.ReturnPath), FullName: of.ReturnPath + "." + of.Name, Type: "MX", Value: expected.MX, Priority: 10},
		{Check: RecordSPF, Record: RecordSPF, Name: relative(of.ReturnPath), FullName: of.ReturnPath + "." + of.Name, Type: "TXT", Value: `"` + expected.SPF + `"`},
		{Check: RecordDKIM, Record: RecordDKIM, Name: relative(dkim), FullName: dkim + "." + of.Name, Type: "TXT", Value: "p=" + of.PublicKey},
		{Check: RecordDMARC, Record: RecordDMARC, Name: relative(dmarc), FullName: dmarc + "." + of.Name, Type: "TXT", Value: `"v=DMARC1; p=none;"`, Advice: true},
	}
}
