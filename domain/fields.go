package domain

// Field names one field that a read can return. The API, the console, the
// command line and the reports of an investigation all use these words.
type Field string

// Category sorts fields by whom their disclosure would harm.
type Category string

// The categories of fields.
const (
	Metadata   Category = "metadata"   // ids, times, statuses, counts
	Address    Category = "address"    // email addresses and names of people
	Message    Category = "message"    // what was written
	Setting    Category = "setting"    // how an account is set up
	Credential Category = "credential" // what proves who somebody is
	Activity   Category = "activity"   // who asked what of the platform
)

// Form is how a field was returned.
type Form string

// The forms of a field.
const (
	Plain     Form = "plain"     // readable
	Protected Form = "protected" // hashed, truncated or sealed
)

// Vocabulary lists every field that any read can return.
var Vocabulary = map[Field]Category{
	"email.id":           Metadata,
	"email.created_at":   Metadata,
	"email.last_event":   Metadata,
	"email.scheduled_at": Metadata,
	"email.message_id":   Metadata,
	"email.timeline":     Metadata,
	"email.reply":        Address, // what receiving servers said, which mostly names the recipient
	"email.from":         Address,
	"email.to":           Address,
	"email.cc":           Address,
	"email.bcc":          Address,
	"email.reply_to":     Address,
	"email.subject":      Message,
	"email.html":         Message,
	"email.text":         Message,
	"email.headers":      Message,
	"email.tags":         Message,
	"email.attachments":  Message,
	"email.raw":          Message,

	"domain.id":         Metadata,
	"domain.name":       Setting,
	"domain.status":     Setting,
	"domain.created_at": Metadata,
	"domain.region":     Setting,
	"domain.records":    Setting,
	"domain.settings":   Setting,

	"apikey.id":           Metadata,
	"apikey.name":         Setting,
	"apikey.token":        Credential,
	"apikey.created_at":   Metadata,
	"apikey.last_used_at": Activity,

	"log.id":              Metadata,
	"log.created_at":      Activity,
	"log.endpoint":        Activity,
	"log.method":          Activity,
	"log.response_status": Activity,
	"log.user_agent":      Activity,

	"account.id":      Metadata,
	"account.name":    Setting,
	"account.blocked": Setting,
	"account.story":   Activity,

	"staff.session":  Credential,
	"member.session": Credential,
}
