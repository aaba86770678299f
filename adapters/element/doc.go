// Package element ends the authentication sessions of NetApp Element (SolidFire) storage clusters: the sessions of
// people, and programs, that signed in to a cluster's management interface. They are not its iSCSI sessions, which
// carry data and are left alone.
//
// The cluster speaks JSON-RPC over HTTPS at /json-rpc/<version>; the session methods came with version 12.0. What it can
// match natively is a user name at one authentication method (DeleteAuthSessionsByUsername), a cluster administrator's
// id (DeleteAuthSessionsByClusterAdmin) and a session id (DeleteAuthSession). Everything else is a list, a filter, and
// one delete for each session: exact, but blind to what signs in after the list. What it cannot match: a name at every
// authentication method in one request, several identity providers apart from each other (there is only "Idp"), and
// people whose identity provider names them by a random UUID (they are only found by listing).
//
// The dangers of this API, each met by a check here and a test beside it:
//
//   - A parameter that the cluster does not know is ignored and the call runs without it; the reply only mentions
//     unusedParameters. Every delete that takes a name is preceded by the list method with the same parameters, whose
//     reply must hold nothing but that name, and no unusedParameters.
//   - username and authMethod are optional on the wire and the effect of leaving one out is not documented. Both are
//     always sent and never empty.
//   - Errors come with HTTP status 200 and always the code 500; the error's name alone tells them apart.
//   - A caller who is not an administrator sees and ends only its own sessions: the account's privilege is proven before
//     the first kill.
//   - The examples in the vendor's documents leave out the JSON-RPC envelope; the wire has it, and it is required.
//
// Vendor documents, all under https://docs.netapp.com/us-en/element-software/api/ :
// reference_element_api_deleteauthsessionsbyusername.html, …deleteauthsession.html, …deleteauthsessionsbyclusteradmin.html,
// …listauthsessionsbyusername.html, …listactiveauthsessions.html, …listauthsessionbyclusteradmin.html,
// …authsessioninfo.html, …getapi.html, …getcurrentclusteradmin.html, …response_object_members.html, …error.html.
package element
