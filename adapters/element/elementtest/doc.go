// Package elementtest is an emulated NetApp Element cluster: the authentication session methods of its JSON-RPC API over
// a real table of sessions, with the traps of the real one.
//
// It follows NetApp's documentation (https://docs.netapp.com/us-en/element-software/api/…) and, where that is silent, the
// behaviour that public clients rely on:
//
//   - the envelope, its id and unusedParameters: reference_element_api_response_object_members.html; requests:
//     concept_element_api_about_the_api.html; authentication: concept_element_api_authentication.html
//   - errors: reference_element_api_error.html. They come with HTTP status 200 and code 500, as NetApp/trident
//     (storage_drivers/solidfire/api) and the SolidFire SDKs expect
//   - sessions: reference_element_api_authsessioninfo.html
//   - negotiation: reference_element_api_getapi.html. A version that the cluster does not have is HTTP 404; some
//     versions write currentVersion as a number (solidfire/solidfire-sdk-golang, sfapi/dispatcher.go)
//   - a node's own endpoint lacks the cluster's methods (xUnknownAPIMethod; NetApp's Ansible collection
//     netapp.elementsw, na_elementsw_info)
//
// Above all a parameter that it does not know is ignored, and the call runs without it. What a delete does without a
// username or an authMethod is not documented; this cluster does the worst: it matches whatever the rest matches.
package elementtest
